"""Methods with a second stage or a read-out after training: what moves when, and a resumed run is the same run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from cuts import cut
from tolerances import assert_close

from lt_kernels import metrics
from lt_kernels.data.samplers import Shuffled, Staged
from lt_kernels.train.augment.mixing import cut_batch
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import build_method, method_options, run_options, total_epochs
from lt_kernels.train.methods.method import Setting
from lt_kernels.train.methods.registry import BASE_METHODS, every_method
from lt_kernels.train.run import build, training
from lt_kernels.train.run.loading import load_run

QUICK: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 32,
    "lr": 0.05,
    "warmup_epochs": 1,
    "threads": 1,
    "validate_every": 2,
    "checkpoint_steps": 4,
    "network_options": {"hidden": [16]},
}
TWICE = ("crt-mixup", "lws-mixup", "mislas")
HALF = {"second_share": 0.5}
SETTING = Setting(torch.tensor([200, 50, 10, 1]), 6, 10)


def config_of(method: str, **changes: Any) -> TrainConfig:
    return make_config({**QUICK, "method": method, **changes})


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("method", "moved"),
    [
        ("crt", {"second_head.weight", "second_head.bias"}),
        ("lws", {"second_head.scale"}),
        ("crt-mixup", {"second_head.weight", "second_head.bias"}),
        ("lws-mixup", {"second_head.scale"}),
        (
            "mislas",
            {"second_head.scale", "head.weight", "head.bias", "second_head.head.weight", "second_head.head.bias"},
        ),
    ],
)
def test_the_second_stage_moves_its_parameters_alone(
    method: str, moved: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, torch.Tensor]] = []
    start = training.EpochSettings.on_train_epoch_start

    def watch(self: Any, trainer: Any, module: Any) -> None:
        start(self, trainer, module)
        if trainer.current_epoch == 4:
            before.append({name: value.clone() for name, value in module.state_dict().items()})
            assert not trainer.optimizers[0].state

    monkeypatch.setattr(training.EpochSettings, "on_train_epoch_start", watch)
    result = training.train_run(config_of(method, method_options=HALF), tmp_path / "run")
    after = state(tmp_path / "run")
    assert {name for name, value in after.items() if not torch.equal(value, before[0][name])} == moved
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 4 + 2
    assert 0 <= result["accuracy"]["all"] <= 100


@pytest.mark.parametrize("step", [18, 40, 43, 57])
@pytest.mark.parametrize("method", ["crt", "mislas"])
def test_a_run_cut_short_in_either_stage_goes_on_to_the_same_bits(method: str, step: int, tmp_path: Path) -> None:
    config = config_of(method, method_options=HALF)
    training.train_run(config, tmp_path / "whole")
    cut(step, lambda: training.train_run(config, tmp_path / "cut"))
    training.train_run(config, tmp_path / "cut", resume=True)
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    module = load_run(tmp_path / "cut")[2]
    assert module.in_second
    assert all(torch.equal(value, whole[name]) for name, value in module.state_dict().items())


def test_rates_of_the_second_stage_are_a_cosine_of_their_own() -> None:
    config = config_of("crt", method_options={"second_share": 0.5, "second_rate": 2.0})
    module = build.build_module(config, build.load_data(config))
    assert module.rate(3, 9, 10) == pytest.approx(0.05 * (1 + math.cos(math.pi * 3.9 / 4)) / 2)
    assert module.rate(4, 0, 10) == pytest.approx(0.1)
    assert module.rate(5, 5, 10) == pytest.approx(0.1 * (1 + math.cos(math.pi * 0.75)) / 2)
    assert total_epochs("crt", 4, config.method_options) == 6
    assert total_epochs("ce", 4, {}) == 4


def test_the_second_stage_has_its_own_order() -> None:
    config = config_of("crt")
    data = build.load_data(config)
    order = training.order_of(build.build_module(config, data), data)
    shares = [data.train[1][order(epoch)].bincount(minlength=10) for epoch in (0, 4)]
    assert torch.equal(shares[0], data.class_counts)
    assert shares[1].max() < 60  # of about 30, where the head class has 124
    staged = Staged(Shuffled(9, 1), Shuffled(9, 2), start=3)
    assert torch.equal(staged(2), Shuffled(9, 1)(2))
    assert torch.equal(staged(3), Shuffled(9, 2)(0))


def test_a_progressive_second_stage_starts_with_every_sample_alike() -> None:
    config = config_of("crt", epochs=40, method_options={"second_share": 0.1, "second_sampler": "progressive"})
    data = build.load_data(config)
    order = training.order_of(build.build_module(config, data), data)
    first, last = (data.train[1][order(epoch)].bincount(minlength=10) for epoch in (40, 43))
    assert first[0] > 100  # of 124 and 30
    assert last[0] < 60


def test_a_method_brings_its_sampler_and_its_mixing() -> None:
    assert run_options("ce-sqrt", {}) == {"sampler": "sqrt"}
    assert build.effective(config_of("ce-cutmix", method_options={"cutmix_alpha": 0.5})).cutmix_alpha == 0.5
    assert build.effective(config_of("ce")).sampler == "instance"
    assert method_options("mislas", {"head": 0.4})["head"] == 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "crt", "method_options": {"second_share": 0.0}}, "second_share"),
        ({"method": "lws", "method_options": {"scaled": "rows"}}, "scaled"),
        ({"method": "wvn-rs", "method_options": {"gamma": -1.0}}, "gamma"),
        ({"method": "ncm", "method_options": {"distance": "far"}}, "distance must be one of .*'far'"),
        ({"method": "ce-cutmix", "mixup_alpha": 0.5}, "cutmix_alpha must be 0 where mixup_alpha is 0.5"),
        ({"method": "lade", "cutmix_alpha": 0.5}, "cutmix_alpha must be 0 for the method lade"),
        ({"method": "crt", "method_options": {"second_sampler": "tail"}}, r"method_options\.second_sampler .*'tail'"),
        ({"method": "crt", "method_options": {"second_share": ".inf"}}, "second_share"),
        ({"method": "crt", "method_options": {"second_rate": float("inf")}}, "second_rate must be finite"),
        ({"method": "ce-lwr", "method_options": {"lwr_strength": -1.0}}, "lwr_strength"),
        ({"augment": "shfit"}, "augment must be one of .*did you mean 'shift'"),
        ({"augment_views": "word-dropout"}, "augment_views 'word-dropout' does not fit the inputs of digits-lt"),
    ],
)
def test_a_bad_option_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        training.train_run(make_config({**QUICK, **changes}), tmp_path / "run")


def test_tau_norm_and_rescaling_read_other_logits_from_the_trained_head() -> None:
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for method, power in (("tau-norm", None), ("wvn-rs", 0.5), ("ce-rs", 0.5), ("pc-softmax", None)):
        config = config_of(method)
        data = build.load_data(config)
        module = build.build_module(config, data)
        weight, counts = module.head.weight.detach().double(), data.class_counts.double()
        x = features.double()
        expected = {
            "tau-norm": x @ (weight / weight.norm(dim=1, keepdim=True)).T,
            "wvn-rs": x @ weight.T / (counts / counts.max()) ** (power or 0.0),
            "ce-rs": x @ weight.T / (counts / counts.max()) ** (power or 0.0),
            "pc-softmax": module.head(features).detach().double() - (counts / counts.sum()).log(),
        }[method]
        assert_close(module.classify(features).detach(), expected, torch.float32)


def test_the_empirical_offset_replaces_the_bias_after_the_last_epoch(tmp_path: Path) -> None:
    """All else is the run of cross-entropy; a run cut short within the last epoch, or resumed after it, is the same."""
    plain = training.train_run(config_of("ce"), tmp_path / "ce")
    result = training.train_run(config_of("empirical-offset"), tmp_path / "whole")
    cut(38, lambda: training.train_run(config_of("empirical-offset"), tmp_path / "cut"))
    assert training.train_run(config_of("empirical-offset"), tmp_path / "cut", resume=True)["accuracy"]
    before, whole, resumed = (state(tmp_path / name) for name in ("ce", "whole", "cut"))
    assert {name for name in before if not torch.equal(before[name], whole[name])} == {"head.bias"}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    _, data, module = load_run(tmp_path / "whole")
    features = module.eval().features(data.train[0]).detach()
    offset = metrics.empirical_offsets(features, data.train[1], module.head.weight.detach())
    assert_close(module.head.bias.detach().double(), -offset, torch.float32)
    assert result["accuracy"] != plain["accuracy"]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_nearest_class_mean_replaces_the_classifier(distance: str, tmp_path: Path) -> None:
    """All else is the run of cross-entropy; predicted is the mean of the training features that is nearest."""
    training.train_run(config_of("ce"), tmp_path / "ce")
    config = config_of("ncm", method_options={"distance": distance})
    result = training.train_run(config, tmp_path / "ncm")
    before, after = state(tmp_path / "ce"), state(tmp_path / "ncm")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    _, data, module = load_run(tmp_path / "ncm")
    module.eval()
    train, test = (module.features(part[0]).detach().double() for part in (data.train, data.test))
    means = torch.stack([train[data.train[1] == c].mean(0) for c in range(10)])
    likeness = (
        torch.cosine_similarity(test[:, None], means, dim=2) if distance == "cosine" else -torch.cdist(test, means)
    )
    right = (likeness.argmax(1) == data.test[1]).double().mean()
    assert result["accuracy"]["all"] == pytest.approx(100 * float(right))


def test_the_zero_offset_is_cross_entropy_without_a_bias() -> None:
    config = config_of("zero-offset")
    data = build.load_data(config)
    head = build.build_module(config, data).head
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    features, target = torch.randn(12, head.in_features), torch.arange(12) % data.num_classes
    logits = features.double() @ head.weight.detach().double().T
    exact = (logits.exp().sum(1).log() - logits.gather(1, target[:, None])[:, 0]).mean()
    assert_close(head(features, target).detach().double(), exact, torch.float32)


def test_sphereface_is_annealed_step_by_step() -> None:
    """max(5, 1000 / (1 + 0.12 t)) by default, t the optimiser's steps; 0 and 0 is the margin alone."""
    made = build_method("sphereface", SETTING, {}).annealing
    assert [made(step) for step in (0, 25, 5000)] == pytest.approx([1000.0, 250.0, 5.0])
    config = config_of("sphereface", method_options={"annealing_high": 8.0, "annealing_low": 2.0})
    module = build.build_module(config, build.load_data(config))
    for step, expected in ((0, 8.0), (10, 8.0 / 2.2), (10_000, 2.0)):
        module.apply_step(step)
        assert module.head.loss.annealing == pytest.approx(expected)
    plain = build_method("sphereface", SETTING, {"annealing_high": 0, "annealing_low": 0})
    assert [plain.annealing(step) for step in (0, 10)] == [0.0, 0.0]
    for wrong in ({"annealing_high": 1.0}, {"annealing_rate": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build_method("sphereface", SETTING, wrong)


def test_an_annealed_run_learns_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """40 steps to lam = 5; with the margin alone the same network predicts one class. Cut within an epoch, too."""
    options = {"annealing_rate": 10.0}
    config = config_of("sphereface", method_options=options, lr=0.1)
    whole = training.train_run(config, tmp_path / "whole")
    cut(14, lambda: training.train_run(config, tmp_path / "cut"))
    training.train_run(config, tmp_path / "cut", resume=True)
    first, second = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_run(tmp_path / "cut")[2].head.loss.annealing == 5.0
    alone = config.replace(method_options={"annealing_high": 0.0, "annealing_low": 0.0})
    plain = training.train_run(alone, tmp_path / "plain")
    assert whole["accuracy"]["all"] > 30 > plain["accuracy"]["all"]


def test_unit_rows_before_every_step(tmp_path: Path) -> None:
    config = config_of("wvn-rs")
    module = build.build_module(config, build.load_data(config))
    module.on_before_optimizer_step(torch.optim.SGD(module.parameters(), lr=0.1))
    assert_close(module.head.weight.detach().norm(dim=1), torch.ones(10), torch.float32)
    assert training.train_run(config, tmp_path / "run")["accuracy"]["all"] > 10


def test_cutmix_pastes_a_box_of_its_partner() -> None:
    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        inputs, target = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 8, 10), torch.arange(6)
        mixed, labels = cut_batch(inputs, target, 1.0)
        for row in range(6):
            own = mixed[row] == row
            assert torch.equal(own | (mixed[row] == float(labels.second[row])), torch.ones_like(own))
            if labels.second[row] != row:
                assert float(own.double().mean()) == pytest.approx(labels.lam)
                rows, columns = (~own[0]).any(1), (~own[0]).any(0)
                assert torch.equal(~own[0], rows[:, None] & columns)  # a box, in all channels
        shares.append(labels.lam)
    assert torch.equal(inputs, torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 8, 10))
    assert min(shares) < 0.5
    assert max(shares) > 0.9


def test_all_methods_fit_the_inputs() -> None:
    images, words = every_method("image"), every_method("words")
    assert set(BASE_METHODS) <= set(images)
    assert [name for name in images if name.endswith("-lwr")] == [
        f"{name}-lwr" for name in ("ce", "ce-drw", "ldam-drw", "focal", "la", "bs")
    ]
    assert set(images) - set(words) == {"ce-mixup", "ce-cutmix", "arb-mixup", "arb-batch-mixup", *TWICE}


def test_what_is_recorded_changes_no_bit_and_survives_a_cut(tmp_path: Path) -> None:
    training.train_run(config_of("ce"), tmp_path / "plain")
    training.train_run(config_of("ce", record=True), tmp_path / "whole")
    cut(25, lambda: training.train_run(config_of("ce", record=True), tmp_path / "cut"))
    training.train_run(config_of("ce", record=True), tmp_path / "cut", resume=True)
    plain, whole, resumed = (state(tmp_path / name) for name in ("plain", "whole", "cut"))
    assert all(torch.equal(plain[name], whole[name]) and torch.equal(plain[name], resumed[name]) for name in plain)
    recorded = [(tmp_path / name / "components.csv").read_text() for name in ("whole", "cut")]
    assert recorded[0] == recorded[1]
    assert len(recorded[0].splitlines()) == 1 + 4 * 10
    assert not (tmp_path / "plain" / "components.csv").exists()
