"""Tables of numbers a class are the loss's own, in float64 whatever it is cast to, and read anew at each call."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from every_loss import COUNTS, FILLED, HEADS, PLAIN, TARGET, WEIGHT, C, D, N, input_of, tables, value
from helpers import normal
from tolerances import assert_close
from torch import Tensor, nn

from lt_kernels import heads, losses, regularizers, schedules
from lt_kernels.data.samplers import ClassBalanced, ProgressivelyBalanced
from lt_kernels.functional import DBM, LDAM, cosine_margin_cross_entropy, lade_regularizer

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(float16)": lambda module: module.to(torch.float16),
    "type": lambda module: module.type(torch.bfloat16),
    "double, float": lambda module: module.double().float(),
    "to(float16), float": lambda module: module.to(torch.float16).float(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", sorted(set(FILLED) - {"linear offset"}))
def test_a_cast_rounds_no_table(name: str, cast: str) -> None:
    module = FILLED[name]()
    before = tables(module)
    after = tables(CASTS[cast](module))
    assert before
    for key, table in before.items():
        assert after[key].dtype == torch.float64, key
        assert torch.equal(after[key], table), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lade_of_many_samples_in_half_precision(dtype: torch.dtype) -> None:
    """70,000 is no number of float16: the regulariser is that of the counts all the same."""
    exact = losses.LADELoss(COUNTS).double()
    loss = losses.LADELoss(COUNTS).to(dtype)
    logits = input_of(loss, dtype)
    assert_close(loss(logits, TARGET), exact(logits.double(), TARGET), dtype)
    term = regularizers.LADERegularizer(COUNTS).to(dtype)
    assert_close(term(logits, TARGET), lade_regularizer(logits.double(), TARGET, torch.tensor(COUNTS)), dtype)


def test_what_follows_the_dtype_and_what_does_not() -> None:
    """Centres that small steps are added to are never of half precision; parameters and a queue's features follow."""
    moved, learned = regularizers.CenterLoss(C, D).half(), regularizers.CenterLoss(C, D, "autograd").half()
    assert moved.centers.dtype == torch.float32
    assert learned.centers.dtype == torch.float16
    assert regularizers.CenterLoss(C, D).double().centers.dtype == torch.float64
    head = FILLED["gml"]().half()
    assert {head.weight.dtype, head.queue.features.dtype, head.loss.log_temperature.dtype} == {torch.float16}
    assert {head.queue.labels.dtype, head.queue.count.dtype} == {torch.int64}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_half_precision_has_the_loss_of_its_numbers(name: str) -> None:
    """Its loss is in the dtype of the features, and near that of the same numbers in float64."""
    head = FILLED[name]().bfloat16().eval()
    exact = copy.deepcopy(head).double()
    features = normal(N, getattr(head, "experts", 1) * D, seed=3, dtype=torch.bfloat16)
    found = head(features, TARGET)
    assert found.dtype == torch.bfloat16
    assert_close(found, exact(features.double(), TARGET), torch.bfloat16)


def test_centres_of_a_model_of_half_precision_still_move() -> None:
    """Steps of rate / (1 + N) times a distance of 1e-3, lost in bfloat16 beside a centre of 1."""
    term = regularizers.CenterLoss(1, 1, rate=0.5).bfloat16()
    term.centers.fill_(1.0)
    term(torch.full((1, 1), 1.0078125, dtype=torch.bfloat16), torch.tensor([0]))
    assert float(term.centers) == pytest.approx(1 + 0.0078125 / 4, abs=1e-7)


def counted(kind: str) -> tuple[object, Callable[[], None]]:
    """Class counts as their owner has them, and a later write to them."""
    if kind == "numpy":
        array = np.array(COUNTS, dtype=np.float64)
        return array, lambda: array.fill(1.0)
    if kind == "list":
        given = list(COUNTS)
        return given, lambda: given.__setitem__(slice(None), [1] * C)
    tensor = torch.tensor(COUNTS, dtype={"float64": torch.float64, "int64": torch.int64}[kind])
    return tensor, lambda: tensor.fill_(1)


MADE_OF_COUNTS: dict[str, Callable[[object], Callable[[], Tensor]]] = {
    "lade": lambda counts: (loss := losses.LADELoss(counts)) and (lambda: value(loss)),
    "lade term": lambda counts: (loss := regularizers.LADERegularizer(counts)) and (lambda: value(loss)),
    "bs": lambda counts: (loss := losses.BalancedSoftmaxLoss(counts)) and (lambda: value(loss)),
    "ldam": lambda counts: (loss := losses.LDAMLoss(counts)) and (lambda: value(loss)),
    "las": lambda counts: (loss := losses.LabelAwareSmoothingLoss(counts)) and (lambda: value(loss)),
    "drw": lambda counts: (drw := schedules.DeferredReweighting(counts, 1)) and (lambda: drw(1)),
    "LDAM": lambda counts: (margin := LDAM(counts)) and (lambda: under(margin)),
    "DBM": lambda counts: (margin := DBM(counts)) and (lambda: under(margin)),
    "LDAM counts": lambda counts: (margin := LDAM(counts)) and (lambda: margin.class_counts.clone()),
    "DBM counts": lambda counts: (margin := DBM(counts)) and (lambda: margin.class_counts.clone()),
}


def under(margin: object) -> Tensor:
    """A loss of cosines under a margin."""
    features, weight = normal(N, D, seed=7), normal(C, D, seed=8)
    return cosine_margin_cross_entropy(features, weight, TARGET, margin=margin)


@pytest.mark.parametrize("kind", ["float64", "int64", "numpy", "list"])
@pytest.mark.parametrize("name", MADE_OF_COUNTS)
def test_later_writes_to_the_counts_change_nothing(name: str, kind: str) -> None:
    counts, write = counted(kind)
    call = MADE_OF_COUNTS[name](counts)
    twin = MADE_OF_COUNTS[name](list(COUNTS))()
    write()
    assert torch.equal(call(), twin)


def test_loading_writes_into_nobody_elses_numbers() -> None:
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    weight = WEIGHT.double()
    for loss in (losses.LADELoss(counts), losses.CrossEntropyLoss(weight), regularizers.LADERegularizer(counts)):
        loss.load_state_dict({key: torch.zeros_like(table) for key, table in loss.state_dict().items()})
    assert counts.tolist() == COUNTS
    assert torch.equal(weight, WEIGHT.double())


@pytest.mark.parametrize("make", [lambda t: ClassBalanced(t, power=0.5), lambda t: ProgressivelyBalanced(t, 3)])
def test_a_sampler_draws_by_the_targets_it_was_given(make: Callable[[Tensor], Callable[[int], Tensor]]) -> None:
    target = torch.tensor([0, 0, 0, 1, 2, 2])
    order, twin = make(target), make(target.clone())
    target.fill_(0)
    assert torch.equal(order(1), twin(1))


# Ways to write numbers into a table; many of them count no version.
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy_": lambda table, new: table.copy_(new),
    "data.copy_": lambda table, new: table.data.copy_(new),
    "detach().copy_": lambda table, new: table.detach().copy_(new),
    "numpy": lambda table, new: np.copyto(table.numpy(), new.numpy()),
    "storage": lambda table, new: table.untyped_storage().copy_(new.untyped_storage()),
    "foreach": lambda table, new: torch._foreach_copy_([table], [new]),
    "data": lambda table, new: setattr(table, "data", new.clone()),
    "inference": lambda table, new: torch.inference_mode()(table.copy_)(new),
    "no version": lambda table, new: unversioned(table, new),
}


def unversioned(table: Tensor, new: Tensor) -> None:
    """What autograd's own tools and FSDP do."""
    with torch.autograd._unsafe_preserve_version_counter(table):
        table.copy_(new)


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("name", PLAIN)
def test_a_call_sees_what_was_written_however_it_was(name: str, way: str) -> None:
    loss, other = PLAIN[name](), PLAIN[name]()
    before = value(loss)
    new = {key: 0.5 * table + 0.01 * torch.arange(C) for key, table in loss.state_dict().items()}
    for key, table in new.items():
        WRITES[way](dict(loss.named_buffers())[key], table)
    other.load_state_dict(new)
    assert torch.equal(value(loss), value(other))
    assert not torch.equal(value(loss), before)
    assert torch.equal(value(loss, torch.float64), value(other, torch.float64))


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("name", ["linear bs", "cosine ldam", "cosine dbm", "linear lade"])
def test_a_head_sees_it_too(name: str, way: str) -> None:
    head = FILLED[name]()
    other = copy.deepcopy(head)
    value(head)
    new = {key: 0.5 * table + 0.01 * torch.arange(C) for key, table in head.named_buffers()}
    for key, table in new.items():
        WRITES[way](dict(head.named_buffers())[key], table)
        dict(other.named_buffers())[key].copy_(table)
    assert torch.equal(value(head), value(other))


def test_weights_of_a_schedule_are_read_anew_too() -> None:
    loss = losses.CrossEntropyLoss()
    loss.set_weight(WEIGHT)
    value(loss)
    loss.weight.data.copy_(WEIGHT.flip(0))
    assert_close(value(loss), F.cross_entropy(input_of(loss), TARGET, WEIGHT.flip(0)))


@pytest.mark.parametrize("name", FILLED)
def test_a_table_outlives_the_context_it_was_made_or_used_in(name: str) -> None:
    """torch.func, inference mode: what they make of a table is not met again outside of them."""
    with torch.inference_mode():
        module = FILLED[name]() if name in PLAIN else None
    module = module or FILLED[name]()
    with torch.inference_mode():
        value(module)
    if name in PLAIN:
        logits = input_of(module)
        torch.func.grad(module)(logits, TARGET)
        for dtype in (torch.float32, torch.float64):
            leaf = logits.detach().to(dtype, copy=True).requires_grad_()
            module(leaf, TARGET).backward()
            assert leaf.grad.isfinite().all()
    else:
        module(*arguments(module)).backward()


def arguments(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Features, or logits, that ask for a gradient, and targets."""
    if isinstance(module, regularizers.LADERegularizer):
        return input_of(module).requires_grad_(), TARGET
    width = getattr(module, "experts", 1) * D
    return normal(N, width, seed=3, dtype=torch.float32).requires_grad_(), TARGET


def test_the_list_of_near_pairs_sees_rewritten_weights() -> None:
    listed, whole = (regularizers.LogitWeightRepulsion(0.4, neighbours=how) for how in ("list", "all"))
    weight = normal(60, 8, seed=9, dtype=torch.float32)
    listed(weight)
    for way in WRITES.values():
        way(weight, weight.roll(7, 0) + 0.3)
        assert_close(listed(weight), whole(weight))


def test_heads_have_what_their_losses_have() -> None:
    balanced = heads.LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS))
    assert set(balanced.state_dict()) == {
        "weight",
        "bias",
        "loss.offset",
    }
    assert set(heads.LinearHead(D, C, losses.CrossEntropyLoss()).state_dict()) == {"weight", "bias"}
