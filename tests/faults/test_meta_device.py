"""Models that are built on the meta device and filled later: tables of numbers a class are there, and stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from every_loss import ALL, COUNTS, FILLED, OTHERS, PLAIN, C, D, N, tables, value
from tolerances import assert_close
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lt_kernels import functional, heads, losses, posthoc, priors, regularizers, schedules

LOSSES = {**PLAIN, **OTHERS}


def same_tables(module: nn.Module, name: str) -> None:
    """Fail unless a module's tables are those of one that was built on the CPU."""
    expected, found = tables(FILLED[name]()), tables(module)
    assert found.keys() == expected.keys()
    for key, table in expected.items():
        assert found[key].device.type == "cpu", key
        assert torch.equal(found[key], table), key


def reset(module: nn.Module) -> nn.Module:
    """What FSDP's users do after `to_empty`: each part draws its parameters."""
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


@pytest.mark.parametrize("name", ALL)
def test_everything_is_built_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        module = ALL[name]()
    assert {parameter.device.type for parameter in module.parameters()} <= {"meta"}
    if name in FILLED and name != "linear offset":
        same_tables(module, name)
    module.to_empty(device="cpu")
    assert value(reset(module)).isfinite()


@pytest.mark.parametrize("name", FILLED)
def test_tables_survive_the_way_to_the_meta_device_and_back(name: str) -> None:
    module = FILLED[name]()
    before = value(module)
    for _ in range(2):
        module.to("meta")
        same_tables(module, name) if name != "linear offset" else None
        module.to_empty(device="cpu")
        same_tables(module, name) if name != "linear offset" else None
    module.reset_parameters()  # a head's own puts back what its loss learned, too
    assert value(module).isfinite()
    assert name not in LOSSES or torch.equal(value(module), before)


def test_set_weights_survive_too() -> None:
    loss = losses.CrossEntropyLoss()
    loss.set_weight(torch.tensor([1.0, 2.0]))
    loss.to("meta").to_empty(device="cpu")
    assert loss.weight.tolist() == [1, 2]


def test_what_is_learned_starts_anew() -> None:
    with torch.device("meta"):
        gml = FILLED["gml"]()
        centers = regularizers.CenterLoss(C, D)
        scaled = posthoc.LearnableWeightScaling(FILLED["linear bs"]())
    gml.to_empty(device="cpu").reset_parameters()
    assert_close(gml.loss.log_temperature.exp().detach(), torch.tensor([0.1]))
    assert gml.queue.labels.tolist() == [-1] * 16
    assert int(gml.queue.count.sum()) == 16
    centers.to_empty(device="cpu").reset_parameters()
    assert not centers.centers.any()
    reset(scaled.to_empty(device="cpu"))
    assert torch.equal(scaled.scale.detach(), torch.ones(C))


OF_COUNTS: dict[str, Callable[[object], Tensor]] = {
    "log_prior": priors.log_prior,
    "class_balanced_weight": priors.class_balanced_weight,
    "ldam_margin": priors.ldam_margin,
    "dbm_margin": priors.dbm_margin,
    "label_aware_smoothing": lambda counts: priors.label_aware_smoothing(counts, 0.3, 0.0),
    "LDAM": lambda counts: functional.LDAM(counts).per_class,
    "DBM": lambda counts: functional.DBM(counts).per_class,
    "DeferredReweighting": lambda counts: schedules.DeferredReweighting(counts, 0)(0),
}


@pytest.mark.parametrize("given", [COUNTS, tuple(COUNTS), np.array(COUNTS), dict(enumerate(COUNTS))], ids=type)
@pytest.mark.parametrize("name", OF_COUNTS)
def test_counts_keep_their_values_there(name: str, given: object) -> None:
    expected = OF_COUNTS[name](COUNTS)
    with torch.device("meta"):
        found = OF_COUNTS[name](given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", OF_COUNTS)
def test_counts_without_values_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="class_counts must have values, got a tensor on the meta device"):
        OF_COUNTS[name](torch.tensor(COUNTS, device="meta"))


def test_weights_without_values_are_named() -> None:
    with pytest.raises(ValueError, match="weight must have values, got a tensor on the meta device"):
        losses.CrossEntropyLoss(torch.ones(C, device="meta"))


@pytest.mark.parametrize("name", [name for name in ALL if "weight" not in name and name != "cosine ldam"])
def test_everything_is_built_of_fake_tensors(name: str) -> None:
    """As tools do that estimate the memory of a step: no value is asked for."""
    with FakeTensorMode():
        module = ALL[name]()
        width = getattr(module, "experts", 1) * D if hasattr(module, "in_features") else C
        assert module(torch.empty(N, width), torch.zeros(N, dtype=torch.int64)).shape == ()


@contextmanager
def empty_buffers() -> Iterator[None]:
    """As accelerate's `init_empty_weights(include_buffers=True)`: parameters and buffers go to meta as they come."""
    add_parameter, add_buffer = nn.Module.register_parameter, nn.Module.register_buffer

    def parameter(self: nn.Module, name: str, value: nn.Parameter | None) -> None:
        add_parameter(self, name, None if value is None else nn.Parameter(value.to("meta"), value.requires_grad))

    def buffer(self: nn.Module, name: str, value: Tensor | None, persistent: bool = True) -> None:
        add_buffer(self, name, value, persistent)
        self._buffers[name] = None if value is None else value.to("meta")

    with (
        mock.patch.object(nn.Module, "register_parameter", parameter),
        mock.patch.object(nn.Module, "register_buffer", buffer),
    ):
        yield


@pytest.mark.parametrize("name", sorted(set(FILLED) - {"linear offset"}))
def test_tables_survive_a_builder_that_empties_parameters_and_buffers(name: str) -> None:
    with empty_buffers():
        module = FILLED[name]()
    same_tables(module, name)
    assert value(reset(module.to_empty(device="cpu"))).isfinite()


def test_a_checkpoint_fills_a_head_from_the_meta_device() -> None:
    for assign in (False, True):
        saved = heads.LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS))
        with torch.device("meta"):
            head = heads.LinearHead(D, C, losses.BalancedSoftmaxLoss([1] * C))
        if not assign:
            head.to_empty(device="cpu")
        head.load_state_dict(saved.state_dict(), assign=assign)
        assert torch.equal(value(head), value(saved))
        meta = {key: tensor.to("meta") for key, tensor in saved.state_dict().items()}
        head.load_state_dict(meta, assign=True)  # which has no values for a table
        same_tables(head, "linear bs")
