"""The residual networks for photographs: published sizes, names of parameters, blocks, stored weights."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import normal
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

from lt_kernels.train.model import resnet


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# With a classifier of a thousand classes: what the authors of the usual checkpoints give.
SIZES = {
    "resnet50": (25_557_032, 50, 2048), "resnet152": (60_192_808, 152, 2048), "resnext50": (25_028_904, 50, 2048),
    "resnext101": (88_791_336, 101, 2048),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_networks_for_photographs_have_the_published_sizes(name):
    size, layers, features = SIZES[name]
    with torch.device("meta"):
        network = getattr(resnet, name)()
    assert parameters(network) + 1000 * features + 1000 == size
    convolutions = [key for key, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    assert sum("downsample" not in key for key in convolutions) + 1 == layers
    assert network.out_features == features


def test_resnext_152_has_the_blocks_of_resnet_152_in_32_groups_of_4_channels():
    with torch.device("meta"):
        network = resnet.resnext152()
    size, before = 3 * 64 * 7 * 7 + 2 * 64, 64
    for stage, blocks in enumerate((3, 8, 36, 3)):
        inner, after = 32 * 4 * 2**stage, 256 * 2**stage
        size += before * after + 2 * after  # the shortcut of the first block
        for _ in range(blocks):
            size += before * inner + 32 * 9 * (inner // 32) ** 2 + inner * after + 2 * (2 * inner + after)
            before = after
    assert parameters(network) == size
    assert network.out_features == 2048


def test_resnet_10_has_ten_layers():
    network = resnet.resnet10()
    assert network.out_features == 512
    assert sum("downsample" not in key for key, part in network.named_modules() if isinstance(part, nn.Conv2d)) == 9


def test_parameters_have_the_names_of_the_usual_checkpoints():
    names = set(resnet.resnext50(width=2).state_dict())
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {"conv1.weight", *(f"bn1.{part}" for part in batch_norm)}
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            for index in (1, 2, 3):
                expected.add(f"layer{stage}.{block}.conv{index}.weight")
                expected.update(f"layer{stage}.{block}.bn{index}.{part}" for part in batch_norm)
        expected.add(f"layer{stage}.0.downsample.0.weight")
        expected.update(f"layer{stage}.0.downsample.1.{part}" for part in batch_norm)
    assert names == expected


def test_the_middle_convolution_has_stride_and_groups():
    block = resnet.Bottleneck(64, 32, 2, groups=4, per_group=16)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
    assert (block.conv2.groups, block.conv2.in_channels, block.conv3.out_channels) == (4, 32, 128)
    assert block.downsample[0].stride == (2, 2)


@pytest.mark.parametrize("make, stride", [(resnet.Basic, 1), (resnet.Basic, 2), (resnet.Bottleneck, 1),
                                          (resnet.Bottleneck, 2)])  # fmt: skip
def test_a_block_is_its_formula(make, stride):
    block = make(8, 4, stride, 1, 64).double().eval()
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    image = normal(2, 8, 6, 6, seed=3)

    def layer(input, convolution, norm, step):
        size = convolution.weight.shape[-1]
        found = F.conv2d(input, convolution.weight, stride=step, padding=size // 2)
        shape = (1, -1, 1, 1)
        scale = norm.weight.view(shape) / (norm.running_var.view(shape) + 1e-5).sqrt()
        return (found - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)

    if make is resnet.Basic:
        found = layer(layer(image, block.conv1, block.bn1, stride).clamp(min=0), block.conv2, block.bn2, 1)
    else:
        middle = layer(layer(image, block.conv1, block.bn1, 1).clamp(min=0), block.conv2, block.bn2, stride)
        found = layer(middle.clamp(min=0), block.conv3, block.bn3, 1)
    beside = layer(image, block.downsample[0], block.downsample[1], stride)
    assert_close(block(image), (found + beside).clamp(min=0))


def test_features_are_a_mean_over_a_thirty_second_of_the_picture():
    network = resnet.resnet50(width=2).eval()
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 64)
    maps = network.layer4(network.layer3(network.layer2(network.layer1(
        network.maxpool(F.relu(network.bn1(network.conv1(torch.rand(1, 3, 64, 96)))))))))  # fmt: skip
    assert maps.shape == (1, 64, 2, 3)


def test_stored_weights_load_without_the_classifier(tmp_path):
    file = tmp_path / "weights.pth"
    first = resnet.resnet10(width=4)
    # older checkpoints do not count batches
    stored = {name: value for name, value in first.state_dict().items() if "num_batches" not in name}
    torch.save({**stored, "fc.weight": torch.rand(9, 32), "fc.bias": torch.rand(9)}, file)
    second = resnet.resnet10(width=4, weights=str(file))
    assert all(torch.equal(second.state_dict()[name], value) for name, value in stored.items())


@pytest.mark.parametrize("change, text", [
    (dict(remove="bn1.weight"), r"lack bn1\.weight$"),
    (dict(remove="layer"), r"lack layer1\.0\.conv1\.weight, .* and \d+ more"),
    (dict(add="layer5.weight"), r"have in excess layer5\.weight"),
    (dict(add="conv1.weight"), r"have in another shape conv1\.weight"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path, change, text):
    stored = resnet.resnet10(width=4).state_dict()
    if "remove" in change:
        stored = {name: value for name, value in stored.items() if not name.startswith(change["remove"])}
    else:
        stored[change["add"]] = torch.rand(2)
    torch.save(stored, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights must fit the network, but those of .*other.pth' " + text):
        resnet.resnet10(width=4, weights=str(tmp_path / "other.pth"))


def test_weights_must_be_a_file_with_a_state_dict(tmp_path):
    with pytest.raises(ValueError, match=f"weights must be a file .*got {re.escape(repr(str(tmp_path / 'none')))}"):
        resnet.resnet10(width=4, weights=str(tmp_path / "none"))
    torch.save([torch.rand(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="weights must hold a state_dict, got list"):
        resnet.resnet10(width=4, weights=str(tmp_path / "list.pth"))


def test_only_the_last_block_is_trained_where_that_is_asked():
    network = resnet.resnet50(width=2, trained="last block").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(4, 3, 64, 64)).square().sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("layer4.2.") for name in moved)
    assert {"layer4.2.conv1.weight", "layer4.2.bn3.running_mean"} <= moved
    with pytest.raises(ValueError, match="trained must be one of 'all', 'last block', got 'none'"):
        resnet.resnet10(trained="none")
