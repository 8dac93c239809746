"""NCL: experts' cross-entropies over all and over hard classes, and their divergences, class by class in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, counts_of, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import heads, losses
from lt_kernels.functional import DBM, ArcFace
from lt_kernels.losses.experts import hard_classes

pytestmark = pytest.mark.usefixtures("kernels")

K, N, C, D = 3, 7, 6, 4
COUNTS = counts_of(C, 861)
TARGET = torch.tensor([0, 5, 2, 2, 3, 1, 4])


def chosen(raw: Tensor, target: int, number: int) -> list[int]:
    """The target, and the others by value, then by index."""
    others = sorted((c for c in range(len(raw)) if c != target), key=lambda c: (-float(raw[c]), c))
    return [target, *others[: number - 1]]


def divergence(logits: Tensor) -> Tensor:
    """Mean over the rows of sum_{i != j} sum_c s_jc (log s_jc - log(s_ic + 1e-9)) of [K, N, M]."""
    share, total = logits.softmax(2), logits.sum() * 0
    for j in range(len(logits)):
        for i in range(len(logits)):
            if i != j:
                total = (
                    total + (share[j] * (logits[j].log_softmax(1) - (share[i] + 1e-9).log())).sum() / logits.shape[1]
                )
    return total


def dbm(cosine: Tensor, max_margin: float, instance: float) -> Tensor:
    """Each expert's cosines with the target's turned by its margin."""
    margin = (max_margin * COUNTS.min() / COUNTS)[TARGET]
    experts = []
    for one in cosine:
        own = one[torch.arange(N), TARGET]
        hard = (one.argmax(1) != TARGET).to(one.dtype)
        turned = torch.cos(own.acos() + margin * (1 + instance * hard * (1 - own) / 2))
        experts.append(torch.where(F.one_hot(TARGET, C).bool(), turned[:, None], one))
    return torch.stack(experts)


def dense(raw: Tensor, number: int, factor: float, unselected: str, adjusted: Tensor | None = None) -> Tensor:
    """Li et al. (2022): masks of zeros and ones over the shifted logits, or a softmax over the selected ones."""
    b = (raw if adjusted is None else adjusted) + COUNTS.log()
    picked = [chosen(raw[0, i].detach(), int(TARGET[i]), number) for i in range(N)]
    if unselected == "zero":
        mask = torch.zeros(N, C, dtype=b.dtype)
        for i, some in enumerate(picked):
            mask[i, some] = 1
        h, label = b * mask, TARGET
    else:
        h, label = torch.stack([b[:, i, some] for i, some in enumerate(picked)], 1), torch.zeros_like(TARGET)
    loss = sum(F.cross_entropy(one, TARGET) for one in b) + sum(F.cross_entropy(one, label) for one in h)
    if len(b) == 1:
        return loss
    return loss + factor / (len(b) - 1) * (divergence(b) + divergence(h))


@pytest.mark.parametrize("unselected", ["zero", "removed"])
@pytest.mark.parametrize("number", [1, 2, 4, 6])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_loss(experts: int, number: int, unselected: Any) -> None:
    loss = losses.NCLLoss(COUNTS, hard_categories=number, unselected=unselected)
    assert_same(
        lambda input: loss(input, TARGET),
        lambda input: dense(input, number, 0.6, unselected),
        {"input": normal(experts, N, C, seed=862, spread=2.0)},
    )


@pytest.mark.parametrize("distillation", [0.0, 1.7])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_factor_and_scale(scale: float | None, distillation: float) -> None:
    loss = losses.NCLLoss(COUNTS, hard_categories=3, distillation=distillation, scale=scale)
    assert_same(
        lambda input: loss(input, TARGET),
        lambda input: dense(input * (1.0 if scale is None else scale), 3, distillation, "zero"),
        {"input": normal(K, N, C, seed=863)},
    )


@pytest.mark.parametrize("unselected", ["zero", "removed"])
@pytest.mark.parametrize("instance, scale", [(1.0, None), (0.0, 5.0)])
def test_dbm(instance: float, scale: float | None, unselected: Any) -> None:
    """Each expert is hard or not by itself; expert 0's raw cosines select, not the turned ones."""
    loss = losses.NCLLoss(
        COUNTS, hard_categories=3, unselected=unselected, margin=DBM(COUNTS, 0.3, instance=instance), scale=scale
    )
    times = 16.0 if scale is None else scale
    assert_same(
        lambda input: loss(input, TARGET),
        lambda input: dense(input, 3, 0.6, unselected, times * dbm(input, 0.3, instance)),
        {"input": normal(K, N, C, seed=864).tanh()},
    )


def test_gradcheck() -> None:
    for margin in (None, DBM(COUNTS, 0.3)):
        loss = losses.NCLLoss(COUNTS, hard_categories=3, margin=margin)
        input = normal(K, N, C, seed=865).tanh().requires_grad_()
        assert torch.autograd.gradcheck(lambda input, loss=loss: loss(input, TARGET), input, fast_mode=True)


def test_saturated_experts() -> None:
    """Two experts sure of different classes: 0.6 * 2 * -log(1e-9) for a divergence, 24.9, and not 0.6 * 2 * 60 = 72."""
    loss = losses.NCLLoss([1, 1], hard_categories=2, distillation=0.6)
    none = losses.NCLLoss([1, 1], hard_categories=2, distillation=0.0)
    input = torch.tensor([[[60.0, 0.0]], [[0.0, 60.0]]], dtype=torch.float64)
    target = torch.tensor([0])
    # all classes are hard, so the divergence counts twice
    expected = 2 * 0.6 * 2 * -math.log(1e-9)
    assert_close(loss(input, target) - none(input, target), torch.tensor(expected, dtype=torch.float64), torch.float32)
    assert abs(expected / 2 - 24.9) < 0.05


def test_equal_experts_do_not_diverge() -> None:
    """Up to the floor, and K times the loss of one."""
    one = normal(1, N, C, seed=866)
    loss = losses.NCLLoss(COUNTS, hard_categories=3)
    assert_close(loss(one.expand(K, -1, -1), TARGET), K * loss(one, TARGET), torch.float32)


def test_unselected_classes_keep_the_logit_zero() -> None:
    """One row, one expert, counts of 1: log(e^2 + e^1 + 2 e^0) - 2 beside the cross-entropy over all."""
    input, target = torch.tensor([[[2.0, 1.0, -3.0, -4.0]]]), torch.tensor([0])
    ones = [1, 1, 1, 1]
    whole = torch.logsumexp(input[0, 0], 0) - 2
    zero = losses.NCLLoss(ones, hard_categories=2)(input, target)
    assert_close(zero, whole + math.log(math.exp(2) + math.exp(1) + 2) - 2)
    removed = losses.NCLLoss(ones, hard_categories=2, unselected="removed")(input, target)
    assert_close(removed, whole + math.log(math.exp(2) + math.exp(1)) - 2)


def test_the_first_expert_selects() -> None:
    """Before the counts are added: class 2 of expert 0, though class 1 has many more samples and expert 1's favour."""
    counts = torch.tensor([5.0, 500.0, 5.0], dtype=torch.float64)
    input = torch.tensor([[[0.0, 1.0, 1.5]], [[0.0, 9.0, 0.0]]], dtype=torch.float64)
    b = input + counts.log()
    expected = sum(F.cross_entropy(one, torch.tensor([0])) for one in b)
    expected = expected + sum(F.cross_entropy(one[:, [0, 2]], torch.tensor([0])) for one in b)
    loss = losses.NCLLoss(counts, hard_categories=2, unselected="removed", distillation=0.0)
    assert_close(loss(input, torch.tensor([0])), expected)


def test_equal_logits_are_taken_by_the_lower_index() -> None:
    values = torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0]]).repeat(2, 1)
    assert hard_classes(values, torch.tensor([4, 3]), 3).tolist() == [[4, 1, 0], [3, 1, 0]]
    assert hard_classes(torch.zeros(1, 300), torch.tensor([7]), 4).tolist() == [[7, 0, 1, 2]]


def test_order_of_the_rows_does_not_matter() -> None:
    loss, order = losses.NCLLoss(COUNTS, hard_categories=3), torch.randperm(N)
    input = normal(K, N, C, seed=867)
    assert_close(loss(input[:, order], TARGET[order]), loss(input, TARGET))


def test_one_class() -> None:
    loss = losses.NCLLoss([3], hard_categories=1)
    found = gradients(
        lambda input: loss(input, torch.zeros(N, dtype=torch.int64)), {"input": normal(K, N, 1, seed=868)}
    )
    assert found["value"].abs() < 1e-7  # the floor's share
    assert (found["input"] == 0).all()


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_float32_is_as_good_as_eager(spread: float) -> None:
    loss = losses.NCLLoss(COUNTS, hard_categories=3)
    given = {"input": normal(K, N, C, seed=869, spread=spread, dtype=torch.float32)}
    wide = {"input": given["input"].double()}
    exact, eager = (gradients(lambda input: dense(input, 3, 0.6, "zero"), one) for one in (wide, given))
    ours = gradients(lambda input: loss(input, TARGET), given)
    for name, value in exact.items():
        assert error(ours[name], value) <= error(eager[name], value) + TOLERANCE[torch.float32], name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    loss = losses.NCLLoss(COUNTS, hard_categories=3)
    given = {"input": normal(K, N, C, seed=870, dtype=dtype)}
    assert_same(lambda input: loss(input, TARGET), lambda input: dense(input, 3, 0.6, "zero"), given, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(given["input"], TARGET).dtype == torch.float32


@pytest.mark.parametrize("kind", ["cosine", "linear", "dbm"])
def test_head(kind: str) -> None:
    """Features side by side, a classifier each; the gradients of features and weights, and the mean of predictions."""
    margin = DBM(COUNTS, 0.2) if kind == "dbm" else None
    loss = losses.NCLLoss(COUNTS, hard_categories=3, margin=margin)
    head = heads.NCLHead(D, C, loss, experts=K, cosine="linear" if kind == "linear" else "cosine", scale=9.0).double()

    def each(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = []
        for k in range(K):
            rows, mine = features[:, k * D : (k + 1) * D], weight[k * C : (k + 1) * C]
            if bias is None:
                rows, mine = (part / part.norm(dim=1, keepdim=True) for part in (rows, mine))
            found.append(rows @ mine.T + (0 if bias is None else bias[k * C : (k + 1) * C]))
        return torch.stack(found)

    features = normal(N, K * D, seed=871).requires_grad_()
    value = head(features, TARGET)
    value.backward()
    state = {name: part.detach().clone().requires_grad_() for name, part in head.named_parameters()}
    leaf = features.detach().clone().requires_grad_()
    raw = each(leaf, state["weight"], state.get("bias"))
    adjusted = {"cosine": 9.0 * raw, "linear": raw, "dbm": 16.0 * dbm(raw, 0.2, 1.0)}[kind]
    expected = dense(raw, 3, 0.6, "zero", adjusted)
    expected.backward()
    assert_close(value, expected)
    assert_close(features.grad, leaf.grad, name="features")
    for name, part in head.named_parameters():
        assert_close(part.grad, state[name].grad, name=name)
    assert_close(head(leaf).detach(), raw.mean(0).detach())
    assert head.weight.shape == (K * C, D)
    assert (head.in_features, head.num_classes, head.experts) == (D, C, K)


def test_state_and_dtype() -> None:
    head, other = (heads.NCLHead(D, C, losses.NCLLoss(COUNTS, hard_categories=3)) for _ in range(2))
    other.load_state_dict(head.state_dict())
    features = normal(N, 3 * D, seed=872, dtype=torch.float32)
    assert torch.equal(head(features, TARGET), other(features, TARGET))
    assert_close(head.half().float().loss.classification.offset, COUNTS.log())
    before = head.weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.weight, before)


def test_published_defaults() -> None:
    loss = losses.NCLLoss(COUNTS, hard_categories=3)
    assert (loss.distillation, loss.unselected, loss.input_kind, loss.classification.scale) == (
        0.6,
        "zero",
        "logits",
        1.0,
    )
    turned = losses.NCLLoss(COUNTS, hard_categories=3, margin=DBM(COUNTS))
    assert (turned.input_kind, turned.classification.scale) == ("cosine", 16.0)
    assert heads.NCLHead(D, C, loss).experts == 3


NCL, INPUT = losses.NCLLoss, torch.randn(K, N, C)
LOSS = NCL(COUNTS, hard_categories=3)
ERRORS = [
    ("class_counts", lambda: NCL([3, 0], hard_categories=1)),
    ("hard_categories", lambda: NCL(COUNTS, hard_categories=0)),
    ("hard_categories", lambda: NCL(COUNTS, hard_categories=C + 1)),
    ("distillation", lambda: NCL(COUNTS, hard_categories=3, distillation=-0.1)),
    ("unselected", lambda: NCL(COUNTS, hard_categories=3, unselected="some")),  # type: ignore[arg-type]
    ("margin", lambda: NCL(COUNTS, hard_categories=3, margin=ArcFace())),  # type: ignore[arg-type]
    ("margin", lambda: NCL(COUNTS, hard_categories=3, margin=DBM(COUNTS[1:]))),
    ("scale", lambda: NCL(COUNTS, hard_categories=3, scale=0.0)),
    ("input", lambda: LOSS(INPUT[0], TARGET)),
    ("input", lambda: LOSS(INPUT[..., 1:], TARGET)),
    ("input", lambda: LOSS(INPUT.long(), TARGET)),
    ("target", lambda: LOSS(INPUT, TARGET + 1)),
    ("target", lambda: LOSS(INPUT, torch.full((N,), -100))),
    ("target", lambda: LOSS(INPUT, TARGET[1:])),
    ("loss", lambda: heads.NCLHead(D, C, losses.CrossEntropyLoss())),  # type: ignore[arg-type]
    ("class_counts", lambda: heads.NCLHead(D, C + 1, LOSS)),
    ("experts", lambda: heads.NCLHead(D, C, LOSS, experts=0)),
    ("cosine", lambda: heads.NCLHead(D, C, LOSS, cosine="some")),  # type: ignore[arg-type]
    ("cosine", lambda: heads.NCLHead(D, C, NCL(COUNTS, hard_categories=3, margin=DBM(COUNTS)), cosine="linear")),
    ("features", lambda: heads.NCLHead(D, C, LOSS)(torch.randn(N, D), TARGET)),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()
