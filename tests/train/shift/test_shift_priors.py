"""What a run's prediction needs to be logits of a known prior: a scale for cosines, and its method's own sampler."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels.train.config import make_config
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.shift.evaluate import held_prior, holds, logit_scale


@pytest.mark.parametrize(
    ("method", "left", "scaled"),
    [("ce", 1, 1), ("ldam", 1, 20), ("bcl", 30, 30), ("ncl", 16, 16), ("dbm-bcl", 1, 20), ("dbm-ncl", 1, 20)],
)
def test_cosines_become_logits_by_their_scale(method: str, left: float, scaled: float) -> None:
    options = {"scale": 20.0} if scaled == 20 else {}
    config = make_config({"method": method, "method_options": options, "network_options": {"hidden": [8]}})
    module = build_module(config, load_data(config))
    assert logit_scale(method, module, "leave") == left
    assert logit_scale(method, module, "scale") == scaled


@pytest.mark.parametrize(
    ("method", "changes", "held"),
    [
        ("ce", {"sampler": "class"}, "nothing"),
        ("ce-balanced", {"method_options": {"sampler": "instance"}}, "nothing"),
        ("crt", {"method_options": {"second_sampler": "instance"}}, "nothing"),
        ("ce-balanced", {}, "uniform"),
        ("crt", {}, "uniform"),
        ("ce", {}, "source"),
    ],
)
def test_another_sampler_leaves_no_prior_that_is_known(method: str, changes: dict, held: str) -> None:
    config = make_config({"method": method, **changes})
    assert holds(config) == held
    data = load_data(config)
    prior = held_prior(config, data.class_counts, build_module(config, data), "leave")
    assert (prior is None) == (held == "nothing")
