"""The schedule poly: its formula, its settings, and the rates that a run's steps have."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.model.classifier import rate_factor
from lt_kernels.train.run.training import train_run


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_poly_is_its_formula(power: float) -> None:
    config = TrainConfig(epochs=10, warmup_epochs=0, schedule="poly", poly_power=power)
    assert rate_factor(config, 0, 0, 4) == 1
    for epoch, step in ((0, 1), (3, 2), (9, 3)):
        assert rate_factor(config, epoch, step, 4) == pytest.approx((1 - (4 * epoch + step) / 40) ** power)


def test_poly_begins_where_the_warm_up_ends() -> None:
    config = TrainConfig(epochs=8, warmup_epochs=2, schedule="poly")
    assert [rate_factor(config, epoch, 0, 4) for epoch in (1, 2)] == pytest.approx([1.25 / 2, 0.75**0.9])


def test_a_run_has_the_rates_of_its_schedule(tmp_path: Path) -> None:
    settings = {"data": "digits-lt", "imbalance": 100, "network_options": {"hidden": [4]}, "epochs": 3, "lr": 0.1}
    more = {"epoch_steps": 5, "batch_size": 8, "warmup_epochs": 0, "schedule": "poly", "poly_power": 0.5}
    train_run(make_config({**settings, **more}), tmp_path / "run")
    last = [row["lr"] for row in read_rows(tmp_path / "run")]
    assert last == pytest.approx([0.1 * (1 - (5 * epoch + 4) / 15) ** 0.5 for epoch in range(3)])


@pytest.mark.parametrize(("settings", "message"), [
    ({"schedule": "poly", "poly_power": 0}, "poly_power must be a finite number above 0, got 0"),
    ({"schedule": "poly", "poly_power": "x"}, "poly_power must be a finite number above 0, got 'x'"),
    ({"schedule": "cosine", "poly_power": 2}, r"poly_power must be given with schedule: poly, and only then"),
    ({"schedule": "poly", "milestones": [1], "gammas": [1]}, "milestones must be given with schedule: step"),
])  # fmt: skip
def test_settings_of_poly_that_do_not_fit_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings)
