"""Options of methods by their effect: what the loss, the head and the schedule of a run then compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("yaml", reason="the extra [train] is not installed")

import published
from helpers import normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import cli
from lt_kernels.heads import LinearHead
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import build_method
from lt_kernels.train.methods.method import MethodParts, Setting
from lt_kernels.train.methods.registry import BASE_METHODS
from lt_kernels.train.methods.variants import config_of
from lt_kernels.train.model.gradients import why_no_components
from lt_kernels.train.recipes import RECIPES, read_settings
from lt_kernels.train.run import training
from lt_kernels.train.run.loading import load_run

COUNTS = torch.tensor([200, 50, 10, 1])
TARGET = torch.arange(12) % 4
FEATURES = normal(12, 6, seed=1)


def made(name: str, **options: Any) -> MethodParts:
    torch.manual_seed(0)
    parts = build_method(name, Setting(COUNTS, 6, 10), options)
    parts.head.double()
    return parts


def cosines(parts: MethodParts) -> Tensor:
    unit = torch.nn.functional.normalize
    return unit(FEATURES) @ unit(parts.head.weight.detach()).T


def test_class_balanced_as_the_paper_has_it() -> None:
    """The mean over the rows of (1 - beta) / (1 - beta^n_y) times cross-entropy."""
    parts = made("cb", average="batch", normalize=False, beta=0.99)
    logits = parts.head(FEATURES).detach()
    weight = (1 - 0.99) / (1 - 0.99 ** COUNTS.double())
    exact = -(weight[TARGET] * logits.log_softmax(1)[torch.arange(12), TARGET]).mean()
    assert_close(parts.head(FEATURES, TARGET).detach(), exact)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("average", ["weighted", "batch"])
def test_deferred_weights_in_all_their_readings(average: str, normalize: bool) -> None:
    """DBM-CB: its paper has the weights as they are and the mean over the rows, its code neither."""
    parts = made("dbm-drw", drw_start=0.5, drw_beta=0.99, drw_normalize=normalize, drw_average=average)
    cosine = cosines(parts)
    own = published.dbm(cosine, TARGET, published.dbm_margin(COUNTS.double(), 0.1))
    logits = 30 * published.replace(cosine, TARGET, own)
    losses = -logits.log_softmax(1)[torch.arange(12), TARGET]
    weight = (1 - 0.99) / (1 - 0.99 ** COUNTS.double())
    weight = (weight * 4 / weight.sum() if normalize else weight)[TARGET]
    exact = {4: losses.mean(), 5: (weight * losses).sum() / (weight.sum() if average == "weighted" else 12)}
    assert parts.weight is not None
    for epoch, value in exact.items():
        parts.head.loss.set_weight(parts.weight(epoch))
        assert_close(parts.head(FEATURES, TARGET).detach(), value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bcl", {"views": 2.5}, "method_options.views must be a whole number, got 2.5"),
        ("bcl", {"temperature": "hot"}, "method_options.temperature must be a number, got 'hot'"),
        ("bcl", {"hidden": -3}, "hidden must be at least 0, got -3"),
        ("sphereface", {"annealing_high": 1.0}, "annealing_high must be at least annealing_low, 5.0, got 1.0"),
        ("estimated-offset-predict", {"uniform_weight": 1.0}, "'uniform_weight'"),  # which has no such term
        (
            "estimated-offset-predict",
            {"centers": "autograd"},  # whose weight is 0 there, and nothing else would move them
            "center_weight must be above 0 with use='predict' and centers='autograd'",
        ),
    ],
)
def test_what_an_option_must_be_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(name, **options)


def test_centres_that_are_a_parameter_are_learned_for_prediction_alone() -> None:
    head = made("estimated-offset-predict", centers="autograd", center_weight=0.5).head
    head(FEATURES, TARGET).backward()
    sums = torch.zeros(4, 6, dtype=torch.float64).index_add_(0, TARGET, FEATURES)
    assert_close(head.loss.center_loss.centers.grad, -0.5 * 2 * sums / 12)


def test_options_of_a_method_that_there_is_not_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["train", "--config"],
        ["compare", "--methods", "bs", "--data"],
        ["planar", "--methods", "bs", "--data"],
    ):
        assert cli.main([*words, "digits-lt", "--set", "methods.bs-lvr.lwr_threshold=0"]) == 2
        assert re.search(r"methods: method .* must be one of .*; got 'bs-lvr'", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["ce-drw", "ldam-drw", "dbm-drw"])
def test_deferred_weights_refuse_another_mean(name: str) -> None:
    assert made(name, drw_average="batch").head.loss.average == "batch"
    with pytest.raises(ConfigError, match="drw_average must be one of 'weighted', 'batch', got 'rows'"):
        made(name, drw_average="rows")


@pytest.mark.parametrize("name", ["dbm-ce", "dbm-bs", "dbm-drw", "dbm-bcl", "dbm-gml", "dbm-ncl"])
def test_the_instance_margin_applies_to_all(name: str) -> None:
    """In a row that is right by far the margin of the hard ones alone is the class's; that of all is larger."""
    options = {"queue": 64} if name == "dbm-gml" else {}
    values = []
    for applies in ("hard", "all"):
        parts = made(name, max_margin=0.6, tau=0.1, applies=applies, **options).head
        rows = parts.weight.detach()[:4] + 0.4 * normal(4, 6, seed=2)
        base = getattr(parts.loss, "base", parts.loss)
        if name == "dbm-ncl":
            cosine = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(parts.weight[:4].detach()).T
            values.append(parts.loss(cosine.expand(3, -1, -1).contiguous(), torch.arange(4)))
        else:
            values.append(base.from_features(rows, parts.weight.detach(), torch.arange(4), cosine=True))
    assert values[1] > values[0] + 1e-3
    with pytest.raises(ConfigError, match="applies must be one of 'hard', 'all', got 'some'"):
        made(name, applies="some", **options)


@pytest.mark.parametrize(("name", "scale"), [("bcl", 30.0), ("gml", 30.0), ("ncl", 16.0)])
def test_the_scale_of_cosines_is_an_option(name: str, scale: float) -> None:
    options = {"queue": 64} if name == "gml" else {}
    assert made(name, **options).head.scale == scale
    head = made(name, scale=7.0, **options).head
    assert head.scale == 7.0
    if name != "ncl":
        weight, log_prior = head.weight.detach(), (COUNTS.double() / COUNTS.sum()).log()
        logits = 7 * torch.nn.functional.normalize(FEATURES) @ torch.nn.functional.normalize(weight).T + log_prior
        exact = torch.nn.functional.cross_entropy(logits, TARGET)
        assert_close(head.classified(head.loss, FEATURES, TARGET).detach(), exact)


@pytest.mark.parametrize("name", ["bcl", "dbm-bcl"])
@pytest.mark.parametrize("recipe", [path.name for path in sorted(RECIPES.glob("cifar*-bcl.yaml"))])
def test_both_projections_of_cifar_are_512_wide(recipe: str, name: str) -> None:
    options = config_of(read_settings(RECIPES / recipe), name, 0).method_options
    head = build_method(name, Setting(COUNTS, 64, 10), options).head
    for mlp in (head.projection, head.prototypes):
        assert [(layer.in_features, layer.out_features) for layer in mlp if hasattr(layer, "in_features")] == [
            (64, 512),
            (512, 128),
        ]


@pytest.mark.parametrize("option", [{"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"softcap": 5.0}], ids=str)
def test_every_method_passes_on_the_options_of_its_loss_or_refuses_them(option: dict[str, float]) -> None:
    """Those that refuse are label-aware smoothing, experts, and a softcap where there are cosines."""
    name, value = next(iter(option.items()))
    refused = {"ncl", "dbm-ncl"} | ({"las"} if name == "label_smoothing" else set())
    for method in BASE_METHODS:
        linear = isinstance(build_method(method, Setting(COUNTS, 6, 10), {}).head, LinearHead)
        if method in refused or (name == "softcap" and not linear):
            with pytest.raises(ConfigError, match=f"method {method} .*: .*{name}"):
                build_method(method, Setting(COUNTS, 6, 10), option)
        else:
            loss = build_method(method, Setting(COUNTS, 6, 10), option).head.loss
            assert getattr(getattr(loss, "base", loss), name) == value, method
    with pytest.raises(ConfigError, match=rf"method_options\.{name} must be a number"):
        build_method("ce", Setting(COUNTS, 6, 10), {name: "much"})


def test_a_run_with_a_softcap_predicts_with_it_and_has_no_gradient_parts(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 32, "threads": 1, "network_options": {"hidden": [16]}}
    options = {"softcap": 2.0, "z_loss": 1e-3}
    training.train_run(make_config({**quick, "method": "pc-softmax", "method_options": options}), tmp_path / "run")
    module = load_run(tmp_path / "run")[2]
    assert (module.head.loss.softcap, module.head.loss.z_loss) == (2.0, 1e-3)
    assert module.head(1000 * torch.randn(5, 16)).abs().max() <= 2
    assert why_no_components(module.head) == "its loss caps the logits"
    module.head.loss.softcap = None
    assert why_no_components(module.head) == "its loss has a z-loss"


def test_a_run_whose_weights_diverged_is_read_out_too(tmp_path: Path) -> None:
    """Its accuracy is that of chance, as with every other read-out: no comparison ends at it."""
    config = make_config({"method": "tau-norm", "epochs": 1, "lr": 1e12, "warmup_epochs": 0, "threads": 1})
    assert training.train_run(config, tmp_path)["accuracy"]["all"] == 10.0
    assert not load_run(tmp_path)[2].head.weight.isfinite().all()
