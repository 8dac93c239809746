"""The built-in networks: shapes, published sizes, shortcuts, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from helpers import normal
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

from lt_kernels.data import LongTailedData
from lt_kernels.train.model.networks import MLP, BasicBlock, Pixels, ResNet32, WordNetwork, build_network


def data(kind: str, inputs: torch.Tensor) -> LongTailedData:
    pair = (inputs, torch.arange(2))
    return LongTailedData("tiny", pair, pair, torch.tensor([1, 1]), 2, kind, ("a", "b"), num_words=9)  # type: ignore


IMAGES, SENTENCES = data("image", torch.rand(2, 3, 9, 8)), data("words", torch.tensor([[0, 8, 3, 4]] * 2))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_resnet_32_has_the_published_size():
    """He et al. (2016), table 6: 0.46 million parameters with a classifier of ten classes, and 32 layers with it."""
    network = ResNet32()
    assert parameters(network) + 64 * 10 + 10 == 464_154
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) + 1 == 32


def test_nine_blocks_a_stage_make_resnet_56():
    """He et al. (2016), table 6: 0.85 million parameters with a classifier of ten classes."""
    network = ResNet32(blocks=9)
    assert parameters(network) + 64 * 10 + 10 == 853_018
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) + 1 == 56


@pytest.mark.parametrize("channels, width, shape", [(1, 16, (8, 8)), (3, 16, (32, 32)), (2, 3, (7, 9)), (1, 1, (1, 1))])
def test_resnet_shapes(channels, width, shape):
    network = ResNet32(channels, width).eval()
    assert network.out_features == 4 * width
    assert network(torch.rand(2, channels, *shape)).shape == (2, 4 * width)


def test_resnet_features_are_means_of_non_negative_maps():
    network = ResNet32(1, 4)
    assert (network(torch.randn(4, 1, 8, 8)) >= 0).all()


@pytest.mark.parametrize("channels", [(4, 8), (3, 6), (2, 5), (4, 4)])
def test_the_shortcut_takes_every_second_pixel_between_channels_of_zeros(channels):
    stride = 2 if channels[0] != channels[1] else 1
    block = BasicBlock(*channels, stride).eval()
    nn.init.zeros_(block.conv2.weight)  # no residual: what is left is the shortcut
    image = torch.rand(2, channels[0], 5, 6)
    found, before = block(image), (channels[1] - channels[0]) // 2
    kept = found[:, before : before + channels[0]]
    assert torch.equal(kept, image[:, :, ::stride, ::stride])
    assert float(found.detach().sum()) == pytest.approx(float(kept.detach().sum()))


def test_the_block_is_its_formula():
    block = BasicBlock(3, 3, 1).double()
    image = normal(4, 3, 5, 5, seed=0)

    def normalised(x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    middle = normalised(F.conv2d(image, block.conv1.weight, padding=1)).clamp(min=0)
    expected = (normalised(F.conv2d(middle, block.conv2.weight, padding=1)) + image).clamp(min=0)
    assert_close(block(image), expected)


def test_convolutions_start_with_variance_two_over_fan_in():
    weight = ResNet32(width=64).blocks[14].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


def test_mlp_without_a_layer_gives_the_numbers_themselves():
    network, input = MLP(6, ()), torch.randn(3, 2, 3)
    assert network.out_features == 6
    assert torch.equal(network(input), input.flatten(1))


def test_mlp_is_its_formula():
    network = MLP(6, (5, 4)).double()
    input = normal(3, 2, 3, seed=1)
    first, second = network.layers[0], network.layers[2]
    hidden = (input.reshape(3, 6) @ first.weight.T + first.bias).clamp(min=0)
    assert_close(network(input), (hidden @ second.weight.T + second.bias).clamp(min=0))
    assert network.out_features == 4
    assert (first.bias == 0).all()


def test_words_are_laid_side_by_side():
    network = WordNetwork(9, 4, embedding=3, features=5).double()
    words = torch.tensor([[0, 8, 3, 4], [1, 1, 2, 0]])
    table = network.embedding.weight
    joined = torch.stack([torch.cat([table[int(word)] for word in row]) for row in words])
    assert_close(network(words), (joined @ network.hidden.weight.T + network.hidden.bias).clamp(min=0))
    assert torch.equal(network(words.int()), network(words))
    assert parameters(network) == 9 * 3 + 4 * 3 * 5 + 5


def test_words_are_summed_with_a_weight_for_each_place():
    network = WordNetwork(9, 4, embedding=3, features=5, combine="sum").double()
    nn.init.normal_(network.place_weight)
    words = torch.tensor([[0, 8, 3, 4], [1, 1, 2, 0]])
    rows = [sum(network.place_weight[p] * network.embedding.weight[int(w)] for p, w in enumerate(row)) for row in words]
    expected = torch.stack(rows) @ network.hidden.weight.T + network.hidden.bias
    assert_close(network(words), expected.clamp(min=0))
    assert network.out_features == 5
    swapped = network(words[:, [1, 0, 2, 3]])
    assert not torch.allclose(swapped, network(words))  # the place counts


@pytest.mark.parametrize("name, made, options", [("mlp", MLP, dict(hidden=[7])), ("resnet32", ResNet32, dict(width=2)),
                                                 ("words", WordNetwork, dict(embedding=3, features=7))])  # fmt: skip
def test_build_network(name, made, options):
    source = SENTENCES if name == "words" else IMAGES
    network = build_network(name, source, **options)
    assert isinstance(network, made)
    assert network(source.train[0]).shape == (2, 8 if name == "resnet32" else 7)
    assert network.out_features == (8 if name == "resnet32" else 7)


@pytest.mark.parametrize(
    "name, source, options, error, text",
    [
        ("vgg", IMAGES, {}, ValueError, "name .* 'vgg'"),
        (
            "words",
            IMAGES,
            {},
            ValueError,
            r"name must be one of \['mlp', 'resnet32', .*\] for the image inputs of tiny",
        ),
        ("mlp", SENTENCES, {}, ValueError, r"name must be one of \['words'\]"),
        ("mlp", IMAGES, dict(hidden=[3, 0]), ValueError, "hidden"),
        ("mlp", IMAGES, dict(width=3), TypeError, "width"),
        ("resnet32", IMAGES, dict(width=0), ValueError, "width"),
        ("words", SENTENCES, dict(features=0), ValueError, "features"),
        ("words", SENTENCES, dict(embedding=1.5), TypeError, "embedding"),
        ("words", SENTENCES, dict(combine="mean"), ValueError, "combine"),
    ],
)
def test_build_network_names_the_bad_argument(name, source, options, error, text):
    with pytest.raises(error, match=text):
        build_network(name, source, **options)


def test_a_seed_fixes_the_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(build_network("resnet32", IMAGES).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_pixels_are_centred_by_the_data_s_mean_and_deviation():
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    inputs = torch.randint(256, (2, 3, 9, 8), dtype=torch.uint8)
    pair = (inputs, torch.arange(2))
    source = LongTailedData("tiny", pair, pair, torch.tensor([1, 1]), 2, "image", ("a", "b"), pixel_mean=mean,
                            pixel_deviation=deviation)  # fmt: skip
    torch.manual_seed(0)
    network = build_network("mlp", source, hidden=[4])
    assert isinstance(network, Pixels)
    assert network.out_features == 4
    shaped = (torch.tensor(value).view(3, 1, 1) for value in (mean, deviation))
    expected = network.network((inputs.float() / 255 - next(shaped)) / next(shaped))
    assert torch.equal(network(inputs), expected)
    assert torch.equal(network(inputs.float() / 255), expected)
    assert not any("mean" in name for name in network.state_dict())


def test_the_cells_of_resnet32_are_means_of_their_parts_of_the_last_map():
    torch.manual_seed(0)
    cells, whole = ResNet32(1, 4, blocks=1, pool=2).eval(), ResNet32(1, 4, blocks=1).eval()
    whole.load_state_dict(cells.state_dict())
    images = torch.randn(3, 1, 32, 16)
    last = cells.blocks(F.relu(cells.bn1(cells.conv1(images))))  # [3, 16, 8, 4]
    features = cells(images).view(3, 16, 2, 2)
    assert cells.out_features == 64
    assert whole.out_features == 16
    torch.testing.assert_close(features[:, :, 1, 0], last[:, :, 4:, :2].mean((2, 3)))
    torch.testing.assert_close(features.mean((2, 3)), whole(images))
    with pytest.raises(ValueError, match="pool must divide the sides of the last map, 7 x 7, got 2"):
        cells(torch.randn(1, 1, 28, 28))
    with pytest.raises(ValueError, match="pool must divide the sides of the last map, 3 x 2, got 2"):
        build_network("resnet32", IMAGES, width=4, pool=2)  # of images of 9 x 8, before any is there
    assert ResNet32(1, 4, pool=4, stride=2)(torch.randn(2, 1, 32, 32)).shape == (2, 256)
    with pytest.raises(ValueError, match="pool"):
        ResNet32(1, 4, pool=0)
    with pytest.raises(ValueError, match="stride"):
        ResNet32(1, 4, stride=0)
