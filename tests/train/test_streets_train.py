"""Segmentation as published: the full-size U-Net, DeepLabv3+, scenes that move with their classes, and the recipes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cuts import cut
from helpers import normal
from streets import write_streets
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("PIL", reason="pillow, which matplotlib brings along, is not installed")

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.data.base import IGNORED
from lt_kernels.metrics import mean_iou
from lt_kernels.train.augment.scenes import augment_scenes, scaled_crop_flip
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.model import resnet
from lt_kernels.train.model.deeplab import DeepLab, Pyramid, dilate
from lt_kernels.train.model.predictions import predict
from lt_kernels.train.model.scores import judge, scenes_at_once
from lt_kernels.train.model.unet import UNet
from lt_kernels.train.recipes import find_recipe, read_config
from lt_kernels.train.run.build import build_module
from lt_kernels.train.run.loading import load_run

RECIPES = {
    "cityscapes-unet": ["network_options.width=4", "augment_crop=32"],
    "cityscapes-deeplabv3plus": ["network_options={width: 4, channels: 8}", "augment_crop=40"],
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_full_u_net_has_the_layers_of_its_figure() -> None:
    """Ronneberger et al. (2015), figure 1: 23 convolutional layers with the classifier, 64 to 1,024 channels."""
    with torch.device("meta"):
        network = UNet(3, width=64, depth=4)
    layers = [part for part in network.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(layers) + 1 == 23
    pairs = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 512), (512, 256), (256, 128), (128, 64)]
    size = sum(9 * (before + after) * after + 4 * after for before, after in pairs)
    size += sum(4 * after * 2 * after + after for after in (512, 256, 128, 64))
    assert parameters(network) == size
    assert network.out_features == 64


def test_a_deeper_u_net_keeps_the_size_and_names_one_that_does_not_fit() -> None:
    network = UNet(1, width=2, depth=3)
    assert network(torch.rand(2, 1, 16, 24)).shape == (2, 2, 16, 24)
    with pytest.raises(ValueError, match=r"H and W multiples of 8, got \[2, 1, 20, 24\]"):
        network(torch.rand(2, 1, 20, 24))
    with pytest.raises(ValueError, match=r"depth must be .*got 0"):
        UNet(1, depth=0)


def test_a_dilated_stage_is_the_stage_at_every_second_pixel() -> None:
    network = resnet.resnet50(width=2).double().eval()
    image = normal(1, 32, 12, 10, seed=3)
    before = network.layer4(image)
    dilate(network.layer4)
    found = network.layer4(image)
    assert found.shape[2:] == image.shape[2:]
    assert_close(found[:, :, ::2, ::2], before)


def test_the_pyramid_is_its_formula() -> None:
    pyramid = Pyramid(3, 2).double().eval()
    image = normal(2, 3, 40, 38, seed=4)

    def layer(part: nn.Module, input: torch.Tensor, rate: int = 1) -> torch.Tensor:
        weight = part[0].weight  # new batch norm in evaluation only divides by (1 + eps)^0.5
        size = rate * (weight.shape[-1] // 2)
        return F.conv2d(input, weight, padding=size, dilation=rate).clamp(min=0) / (1 + 1e-5) ** 0.5

    parts = [layer(part, image, rate) for part, rate in zip(pyramid.branches, (1, 6, 12, 18))]
    whole = layer(pyramid.whole, image.mean((2, 3), keepdim=True)).expand(2, 2, 40, 38)
    assert [part[0].kernel_size for part in pyramid.branches] == [(1, 1), (3, 3), (3, 3), (3, 3)]
    assert_close(pyramid(image), layer(pyramid.join, torch.cat([*parts, whole], 1)))


def test_the_pyramid_is_trained_with_one_image() -> None:
    """As with two, but for the means: theirs are normed as in evaluation, and leave no trace there."""
    pyramid = Pyramid(3, 2).double().train()
    image = normal(1, 3, 8, 8, seed=4)
    normed: list[torch.Tensor] = []
    pyramid.whole.register_forward_hook(lambda module, args, output: normed.append(output))
    pyramid(image).sum().backward()
    assert pyramid.whole[1].training
    assert int(pyramid.whole[1].num_batches_tracked) == 0
    assert int(pyramid.join[1].num_batches_tracked) == 1
    assert_close(normed[0], pyramid.whole.eval()(image.mean((2, 3), keepdim=True)))
    assert all(one.grad is not None for one in pyramid.parameters())


def test_deeplab_has_the_published_parts() -> None:
    """Chen et al. (2018): a pyramid and a decoder of 256 channels, 48 of low-level features."""
    with torch.device("meta"):
        network, backbone = DeepLab(), resnet.resnet50()
    pyramid = 256 * (2048 * (1 + 3 * 9 + 1) + 5 * 256) + 6 * 2 * 256
    decoder = 256 * 48 + 2 * 48 + 9 * 256 * (256 + 48 + 256) + 2 * 2 * 256
    assert parameters(network) == parameters(backbone) + pyramid + decoder
    assert network.out_features == 256


def test_deeplab_keeps_the_size_and_a_linear_classifier_may_come_before_the_scaling() -> None:
    network = DeepLab(3, channels=8, width=4).double().eval()
    image = normal(2, 3, 40, 72, seed=5)
    features = network(image)
    assert features.shape == (2, 8, 40, 72)
    coarse: list[torch.Tensor] = []
    network.decoder.register_forward_hook(lambda module, args, output: coarse.append(output))
    network(image)
    assert coarse[0].shape == (2, 8, 10, 18)
    classifier = nn.Conv2d(8, 5, 1).double()
    scaled = F.interpolate(classifier(coarse[0]), size=(40, 72), mode="bilinear", align_corners=False)
    assert_close(classifier(features), scaled)


def test_deeplab_takes_stored_weights_for_its_backbone(tmp_path: Path) -> None:
    stored = resnet.resnet50(width=4).state_dict()
    torch.save(stored, tmp_path / "weights.pth")
    network = DeepLab(3, channels=8, width=4, weights=str(tmp_path / "weights.pth"))
    assert all(torch.equal(network.backbone.state_dict()[name], value) for name, value in stored.items())


def ramps(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of their own columns, rows and ones, and a class for each pixel: bilinear values tell where they are."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([column, row, torch.ones(height, width)]).double()
    return image.expand(count, -1, -1, -1), (row * width + column).expand(count, -1, -1)


def test_scenes_are_scaled_cut_and_mirrored_with_their_classes() -> None:
    torch.manual_seed(0)
    height, width, crop = 40, 64, 36
    images, target = ramps(64, height, width)
    moved, classes = scaled_crop_flip(images, target, crop)
    assert moved.shape == (64, 3, crop, crop)
    assert classes.shape == (64, crop, crop)
    inside = moved[:, 2] > 1 - 1e-9  # wholly within the scene
    assert (classes[inside] != IGNORED).all()
    assert ((moved[:, 0] - classes % width).abs()[inside] <= 0.5 + 1e-6).all()
    assert ((moved[:, 1] - classes // width).abs()[inside] <= 0.5 + 1e-6).all()
    beyond = moved[:, 2] == 0
    assert (classes[beyond] == IGNORED).all()
    assert beyond.any()
    scales, mirrored = [], 0
    for one, ok in zip(moved, inside):
        step = one[0].diff(dim=1)[(ok[:, 1:] & ok[:, :-1])]
        down = one[1].diff(dim=0)[(ok[1:] & ok[:-1])]
        assert_close(torch.cat([step.abs(), down]), step.abs()[:1].expand(len(step) + len(down)))
        scales.append(1 / float(step.abs()[0]))
        mirrored += int(step[0] < 0)
    assert 0.5 <= min(scales) < 0.6
    assert 1.9 < max(scales) <= 2.0
    assert 20 <= mirrored <= 44


def test_bytes_become_shares_and_no_crop_is_the_shorter_side() -> None:
    images, target = torch.full((2, 3, 8, 12), 255, dtype=torch.uint8), torch.zeros(2, 8, 12, dtype=torch.int64)
    moved, classes = augment_scenes("scaled-crop-flip", images, target, 0)
    assert moved.shape == (2, 3, 8, 8)
    assert classes.shape == (2, 8, 8)
    assert float(moved.max()) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"), train=4, height=48, width=64)


def changes(root: Path, *more: str) -> list[str]:
    options = f"data_options={{root: {root}, cache_dir: {root / 'cache'}, threads: 1}}"
    small = ["epochs=1", "epoch_steps=2", "batch_size=2", "threads=1", options, *more]
    return [word for change in small for word in ("--set", change)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["ce", "arb"])
def test_two_steps_of_each_recipe(name: str, method: str, root: Path, tmp_path: Path) -> None:
    words = ["train", "--config", name, "--quiet", "--out", str(tmp_path / "run")]
    assert cli.main([*words, *changes(root, *RECIPES[name], f"method={method}")]) == 0
    result = read_result(tmp_path / "run")
    assert len(result["per_class_iou"]) == 19
    assert 0 <= result["accuracy"]["miou"] <= result["accuracy"]["macc"] <= 100
    config, data, module = load_run(tmp_path / "run")
    assert (config.lr, config.momentum, config.weight_decay, config.schedule) == (0.01, 0.9, 5e-4, "poly")
    # what is judged scene by scene is what is judged at once
    target = torch.cat(list(data.test[1].split(1)))
    expected = mean_iou(predict(module, data.test[0], scenes_at_once(data)), target, 19, ignore_index=IGNORED)
    assert judge(module, data).groups["miou"] == pytest.approx(100 * expected["mean_iou"])
    assert result["accuracy"]["miou"] == pytest.approx(100 * expected["mean_iou"])


def test_the_recipes_have_the_published_networks() -> None:
    unet, deeplab = (read_config(find_recipe(name)) for name in RECIPES)
    assert (unet.network, unet.network_options) == ("unet", {"width": 64, "depth": 4})
    assert (deeplab.network, list(deeplab.network_options)) == ("deeplabv3plus", ["weights"])
    for config in (unet, deeplab):
        assert (config.poly_power, config.warmup_epochs, config.augment) == (0.9, 0, "scaled-crop-flip")


def test_a_run_that_was_cut_goes_on_with_the_same_crops(root: Path, tmp_path: Path) -> None:
    config = "cityscapes-unet"
    small = changes(root, *RECIPES["cityscapes-unet"], "epochs=2", "epoch_steps=0", "checkpoint_steps=1")
    words = ["train", "--config", config, "--quiet", *small, "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    cut(3, lambda: cli.main([*words, str(tmp_path / "cut")]))
    assert cli.main([*words, str(tmp_path / "cut"), "--resume"]) == 0
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_scenes_are_learnt_from_files(root: Path) -> None:
    data = load("cityscapes", root=root, cache_dir=root / "cache", threads=1)
    config = TrainConfig(data="cityscapes", network="unet", network_options={"width": 4}, augment="scaled-crop-flip")
    torch.set_num_threads(1)
    module = build_module(config, data).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    batch = tuple(part.index_select(0, torch.arange(4)) for part in data.train)
    seen = []
    for step in range(12):
        optimizer.zero_grad()
        loss = module.training_step(batch, step)["loss"]
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert all(map(math.isfinite, seen))
    assert seen[-1] < seen[0]


def test_crops_are_for_scenes_alone() -> None:
    data = load("digits-lt")
    with pytest.raises(ConfigError, match="augment_crop must be 0 for digits-lt, which has no scenes, got 8"):
        build_module(TrainConfig(augment_crop=8), data)
    with pytest.raises(ConfigError, match=r"augment must be one of .*'scaled-crop-flip'"):
        build_module(TrainConfig(augment="scaled-crop-flip"), data)
