"""Losses of pixels against dense formulas, the U-Net, and runs on small scenes: scores, table, resuming, errors."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import cut
from helpers import assert_same, classes_of, counts_of, normal
from tolerances import assert_close
from torch import Tensor

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from lt_kernels import cli, losses
from lt_kernels.data import LongTailedData, load
from lt_kernels.heads import LinearHead
from lt_kernels.train.commands import named_methods
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.methods.registry import every_method
from lt_kernels.train.model.networks import build_network
from lt_kernels.train.model.scores import score
from lt_kernels.train.model.unet import UNet
from lt_kernels.train.recipes import find_recipe, read_settings
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

CLASSES, IGNORED = 5, 255
COUNTS = counts_of(CLASSES, seed=3)


def pixels(seed: int = 1) -> Tensor:
    """Classes [2, 3, 4] of pixels; the last class is absent, and a third are ignored."""
    target = classes_of(24, CLASSES - 1, seed)
    return torch.where(torch.arange(24) % 3 == 1, IGNORED, target).reshape(2, 3, 4)


def rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [M, C] and classes [M] of the pixels that count."""
    kept = target.flatten() != IGNORED
    return logits.permute(0, 2, 3, 1).reshape(-1, CLASSES)[kept], target.flatten()[kept]


def share(mass: Tensor, y: Tensor) -> Tensor:
    """The target's share of the mass [M, C]."""
    return mass.gather(1, y[:, None])[:, 0] / mass.sum(1)


def plain(z: Tensor, y: Tensor) -> Tensor:
    return -share(z.exp(), y).log().mean()


def balanced(z: Tensor, y: Tensor) -> Tensor:
    return -share(COUNTS * z.exp(), y).log().mean()


def adjusted(z: Tensor, y: Tensor) -> Tensor:
    return -share((COUNTS / COUNTS.sum()) ** 0.7 * z.exp(), y).log().mean()


def of_batch(z: Tensor, y: Tensor) -> Tensor:
    count = torch.stack([(y == label).sum() for label in range(CLASSES)]).double()
    return -share(count * z.exp(), y).log().mean()


def focal(z: Tensor, y: Tensor) -> Tensor:
    p = share(z.exp(), y)
    return (-((1 - p) ** 1.5) * p.log()).mean()


def class_balanced(z: Tensor, y: Tensor) -> Tensor:
    weight = (0.1 / (1 - 0.9**COUNTS))[y]
    return -(weight * share(z.exp(), y).log()).sum() / weight.sum()


FORMULAS: dict[str, tuple[Callable[..., losses.Loss], Callable[[Tensor, Tensor], Tensor]]] = {
    "ce": (lambda **more: losses.CrossEntropyLoss(**more), plain),
    "bs": (lambda **more: losses.BalancedSoftmaxLoss(COUNTS, **more), balanced),
    "la": (lambda **more: losses.LogitAdjustmentLoss(COUNTS, tau=0.7, **more), adjusted),
    "arb": (lambda **more: losses.ARBLoss(COUNTS, **more), balanced),
    "arb-batch": (lambda **more: losses.ARBLoss(counts="batch", **more), of_batch),
    "focal": (lambda **more: losses.FocalLoss(1.5, **more), focal),
    "cb": (lambda **more: losses.ClassBalancedLoss(COUNTS, beta=0.9, **more), class_balanced),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_of_pixels_are_their_formulas(name: str, kernels: str) -> None:
    make, formula = FORMULAS[name]
    loss, target = make(ignore_index=IGNORED), pixels()
    for dtype in (torch.float64, torch.float32):
        leaves = {"logits": normal(2, CLASSES, 3, 4, seed=2, spread=2, dtype=dtype)}
        assert_same(lambda logits: loss(logits, target), lambda logits: formula(*rows(logits, target)), leaves, dtype)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_head_of_pixels_is_the_loss_of_its_logits(name: str, kernels: str) -> None:
    make, formula = FORMULAS[name]
    head, target = LinearHead(6, CLASSES, make(ignore_index=IGNORED)).double(), pixels(4)

    def dense(features: Tensor) -> Tensor:
        logits = features @ head.weight.detach().T + head.bias.detach()
        return formula(*rows(logits.permute(0, 3, 1, 2), target))

    assert_same(lambda features: head(features, target), dense, {"features": normal(2, 3, 4, 6, seed=5)})


def test_ignored_pixels_and_absent_classes_get_no_gradient(kernels: str) -> None:
    logits, target = normal(2, CLASSES, 3, 4, seed=6).requires_grad_(), pixels()
    losses.ARBLoss(counts="batch", ignore_index=IGNORED)(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.permute(0, 2, 3, 1)[target == IGNORED].count_nonzero() == 0
    assert logits.grad[:, CLASSES - 1].count_nonzero() == 0
    assert logits.grad[:, 0].count_nonzero() > 0


def test_the_network_has_features_for_every_pixel() -> None:
    network = UNet(2, width=4)
    input = torch.randn(3, 2, 12, 8)
    assert network(input).shape == (3, 4, 12, 8)
    assert network.out_features == 4
    network.eval()
    changed = input.clone()
    changed[0, 0, 5, 3] += 1
    differs = (network(changed) - network(input)).abs().sum(1) > 0
    assert differs[0, 5, 3]
    assert not differs[1:].any()
    for wrong in (torch.randn(3, 1, 12, 8), torch.randn(3, 2, 10, 8), torch.randn(2, 12, 8)):
        with pytest.raises(ValueError, match=r"input must be \[N, 2, H, W\]"):
            network(wrong)
    with pytest.raises(ValueError, match="width"):
        UNet(2, width=0)


def test_scores_of_pixels_by_hand() -> None:
    image, truth = torch.zeros(1, 1, 2, 4), torch.tensor([[[0, 0, 0, 1], [1, -100, 2, 2]]])
    fields: dict[str, Any] = {"class_counts": torch.tensor([3, 2, 2]), "group_counts": torch.tensor([200, 50, 3])}
    data = LongTailedData(
        "x", (image, truth), (image, truth), num_classes=3, input_kind="scene", class_names=("a", "b", "c"), **fields
    )
    found = score(torch.tensor([[[0, 0, 1, 1], [1, 1, 2, 0]]]), data)
    assert found.per_class == pytest.approx([200 / 3, 100, 50])
    assert found.per_class_iou == pytest.approx([50, 200 / 3, 50])
    expected = {"many": 200 / 3, "medium": 100, "few": 50, "all": 650 / 9, "miou": 500 / 9, "macc": 650 / 9}
    assert {name: found.groups[name] for name in expected} == pytest.approx(expected)


SMALL = "data: digit-scenes\ndata_options: {most: 12, test_per_class: 3, per_scene: 3, size: 24}\nimbalance: 3\n"
SMALL += "network: unet\nnetwork_options: {width: 4}\nepochs: 3\nbatch_size: 4\nlr: 0.1\nwarmup_epochs: 1\n"
SMALL += "validate_every: 2\nthreads: 1\nmethods: {ce-lwr: {lwr_threshold: 0.0}}\n"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "small.yaml").write_text(SMALL)
    words = ["compare", "--data", "digit-scenes", "--config", str(folder / "small.yaml"), "--seeds", "1", "--jobs", "1"]
    methods = ["--methods", "ce,arb-batch,ce-lwr", "--quiet", "--out", str(folder / "out")]
    assert cli.main([*words, *methods]) == 0
    return folder / "out"


def test_a_result_is_what_its_checkpoint_predicts(comparison: Path) -> None:
    for method in ("ce", "arb-batch", "ce-lwr"):
        _, data, module = load_run(comparison / method / "seed-0")
        with torch.no_grad():
            said = module(data.test[0]).argmax(-1)
        kept = data.test[1] != -100
        said, truth = said[kept], data.test[1][kept]
        right = [float(((said == y) & (truth == y)).sum()) for y in range(11)]
        either = [float(((said == y) | (truth == y)).sum()) for y in range(11)]
        overlap = [100 * a / b for a, b in zip(right, either)]
        accuracy = [100 * a / float((truth == y).sum()) for y, a in enumerate(right)]
        result = read_result(comparison / method / "seed-0")
        assert result is not None
        assert result["per_class_iou"] == pytest.approx(overlap)
        assert result["per_class"] == pytest.approx(accuracy)
        last = read_rows(comparison / method / "seed-0")[-1]
        for found in (result["accuracy"], last):
            assert found["miou"] == pytest.approx(sum(overlap) / 11)
            assert found["macc"] == found["all"] == pytest.approx(sum(accuracy) / 11)


def test_the_table_and_the_report_say_what_they_count(comparison: Path) -> None:
    with (comparison / "table.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    # a digit has 12 scans at most; the background is in 20 to 100 scenes
    assert header == ["method", "medium", "few", "all", "GM", "mIoU", "mAcc", "s/epoch"]
    assert [line[0] for line in lines] == ["ce", "arb-batch", "ce-lwr"]
    page = (comparison / "report.html").read_text()
    assert "training pixels each" in page
    assert "classes with more than 100 training scans" in page
    assert "mIoU: mean over the classes of intersection over union" in page
    with (comparison / "classes.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    overlap = read_result(comparison / "arb-batch" / "seed-0")["per_class_iou"]
    assert [float(row["iou"]) for row in classes if row["method"] == "arb-batch"] == pytest.approx(overlap)


def test_training_lowers_the_loss(comparison: Path) -> None:
    for method in ("ce", "arb-batch", "ce-lwr"):
        losses_of_epochs = [row["loss"] for row in read_rows(comparison / method / "seed-0")]
        assert losses_of_epochs[-1] < losses_of_epochs[0]
    assert read_rows(comparison / "ce-lwr" / "seed-0")[0]["regularizer"] != 0


TINY = TrainConfig(data="digit-scenes", imbalance=1, data_options={"most": 4, "test_per_class": 1, "size": 24})


@pytest.mark.parametrize("name", [f"{name}{suffix}" for name in FORMULAS for suffix in ("", "-lwr")])
def test_a_few_steps_lower_the_loss(name: str) -> None:
    config = TINY.replace(network="unet", network_options={"width": 4}, method=name)
    data = load_data(config)
    module = build_module(config, data).train()
    module.apply_epoch(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for _ in range(15):
        optimizer.zero_grad()
        step = module.training_step((data.train[0][:4], data.train[1][:4]), 0)
        step["loss"].backward()
        optimizer.step()
        seen.append(float(step["data_loss"]))
    assert seen[-1] < 0.8 * seen[0]


def test_cut_within_an_epoch_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL + "method: arb-batch-lwr\ncheckpoint_steps: 4\n")
    words = ["train", "--config", str(tmp_path / "a.yaml"), "--quiet", "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    cut(10, lambda: cli.main([*words, str(tmp_path / "cut")]))
    assert cli.main([*words, str(tmp_path / "cut"), "--resume"]) == 0
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert whole["global_step"] == resumed["global_step"] > 10
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    results = [read_result(tmp_path / name) for name in ("whole", "cut")]
    assert results[0]["per_class_iou"] == results[1]["per_class_iou"]


BAD = [
    ({"method": "lade"}, r"method must have a loss that ignores pixels for digit-scenes, got 'lade'"),
    ({"method": "estimated-offset"}, r"method must have a loss that ignores pixels.*'estimated-offset'"),
    ({"method": "bcl"}, r"method must have a loss that ignores pixels.*'bcl'"),
    ({"mixup_alpha": 0.5}, r"mixup_alpha must be 0 for digit-scenes, got 0\.5"),
    ({"method": "ce-balanced"}, r"sampler must be instance for digit-scenes"),
    ({"augment": "crop-flip"}, r"augment must be none or scaled-crop-flip for digit-scenes, .*got 'crop-flip'"),
    ({"augment_crop": 16}, r"augment_crop must be 0 where augment is none, got 16"),
    ({"augment": "scaled-crop-flip", "augment_views": "none"}, r"augment_views must be same for digit-scenes"),
    ({"method": "crt"}, r"sampler must be instance for digit-scenes, .* got 'class'"),
    ({"network": "mlp", "network_options": {}}, r"network mlp.*'unet'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_what_pixels_cannot_have_is_named(change: dict, message: str, tmp_path: Path) -> None:
    options = {"most": 4, "test_per_class": 1, "size": 24}
    settings = {"data": "digit-scenes", "data_options": options, "imbalance": 1, "network": "unet", "epochs": 1}
    with pytest.raises(ConfigError, match=message):
        train_run(make_config({**settings, "network_options": {"width": 2}, **change}), tmp_path / "run")


def test_every_method_for_pixels_can_be_trained_on_them() -> None:
    config = TINY.replace(network="unet", network_options={"width": 2})
    data = load_data(config)
    for method in every_method("scene"):
        module = build_module(config.replace(method=method), data)
        step = module.training_step((data.train[0][:2], data.train[1][:2]), 0)
        assert torch.isfinite(step["loss"]), method
        assert module(data.train[0][:2]).shape == (2, 24, 24, 11)
    settings = read_settings(find_recipe("digit-scenes"))
    assert named_methods("all", settings) == every_method("scene")
    assert {"ce", "bs", "arb", "arb-batch", "cb", "focal", "la"} <= set(every_method("scene"))


def test_the_network_by_name() -> None:
    data = load("digit-scenes", imbalance=1, most=4, test_per_class=1, size=24)
    assert build_network("unet", data, width=3).out_features == 3
    with pytest.raises(
        ValueError, match=re.escape("name must be one of ['unet', 'deeplabv3plus'] for the scene inputs")
    ):
        build_network("mlp", data)
    assert_close(data.train[0].mean(), torch.tensor(0.0))
