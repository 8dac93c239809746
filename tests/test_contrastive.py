"""Balanced contrastive learning: the term, the loss and its head against loops over anchors and keys in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_same, classes_of, counts_of, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import heads, losses, memory_budget
from lt_kernels.contrastive import balanced_contrastive
from lt_kernels.ops import keys

pytestmark = pytest.mark.usefixtures("kernels")

N, C, D = 9, 5, 4
COUNTS = counts_of(C, 801)
TARGET = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 3])  # class 2 and 3 have one sample, class 4 only its prototype


def unit(rows: Tensor) -> Tensor:
    """Rows of norm 1."""
    return rows / rows.norm(dim=1, keepdim=True)


def dense(views: Tensor, prototypes: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Zhu et al. (2022), an anchor and a key at a time; [V N]."""
    view, keys = unit(views), torch.cat((unit(views), unit(prototypes)))
    label = target.tolist() * (len(views) // len(target))
    of_key = label + list(range(len(prototypes)))
    rows = []
    for i, own in enumerate(label):
        logit = keys @ view[i] / temperature
        others = [k for k in range(len(keys)) if k != i]
        divisor = [of_key.count(of_key[k]) - (of_key[k] == own) for k in others]
        denominator = (logit[others] - torch.tensor(divisor).to(logit).log()).logsumexp(0)
        positive = [k for k in others if of_key[k] == own]
        rows.append(-(logit[positive] - denominator).sum() / len(positive))
    return torch.stack(rows)


def leaves(views: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> dict[str, Tensor]:
    """Views and prototypes of norms that are not 1."""
    return {
        "views": normal(views * N, D, seed=802, spread=spread, dtype=dtype),
        "prototypes": normal(C, D, seed=803, spread=3.0, dtype=dtype),
    }


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.3])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_term(views: int, temperature: float, reduction: str) -> None:
    reduced = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    options: Any = {"temperature": temperature, "reduction": reduction}
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, **options),
        lambda views, prototypes: reduced(dense(views, prototypes, TARGET, temperature)),
        leaves(views),
    )


def test_term_in_slabs_of_a_budget() -> None:
    with memory_budget(700):
        assert_same(
            lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET),
            lambda views, prototypes: dense(views, prototypes, TARGET, 0.1).mean(),
            leaves(2),
        )


def test_gradcheck() -> None:
    given = [leaf.requires_grad_() for leaf in leaves(2).values()]
    assert torch.autograd.gradcheck(lambda v, u: balanced_contrastive(v, u, TARGET, reduction="none"), given)


def test_no_second_derivative() -> None:
    views = leaves(2)["views"].requires_grad_()
    (slope,) = torch.autograd.grad(
        balanced_contrastive(views, leaves(2)["prototypes"], TARGET), views, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()


def test_literal() -> None:
    """One view of class 0 with cosines 1 and 0: the prototypes' divisors are 2 - 1 and 1."""
    loss = balanced_contrastive(torch.tensor([[2.0, 0.0]]), torch.eye(2), torch.tensor([0]), temperature=0.5)
    assert_close(loss, torch.tensor(math.log1p(math.exp(-2))))


@pytest.mark.parametrize("classes", [1, 3])
def test_one_class_and_identical_rows(classes: int) -> None:
    """All keys of the one class are the same: log |P| / |P| - 0; with other prototypes there is more to beat."""
    views = torch.ones(6, D, dtype=torch.float64)
    prototypes = torch.ones(classes, D, dtype=torch.float64)
    loss = balanced_contrastive(views, prototypes, torch.zeros(3, dtype=torch.int64), reduction="none")
    assert_close(loss, torch.full((6,), math.log(classes), dtype=torch.float64))


def test_order_of_the_batch_does_not_matter() -> None:
    given, order = leaves(2), torch.randperm(N)
    both = torch.cat((order, order + N))
    plain = balanced_contrastive(**given, target=TARGET, reduction="none")
    mixed = balanced_contrastive(given["views"][both], given["prototypes"], TARGET[order], reduction="none")
    assert_close(mixed, plain[both])


def test_more_of_another_class_weigh_no_more() -> None:
    """A class whose keys are all one point counts once, however many samples of it a batch has."""
    prototypes, anchor = normal(C, D, seed=804), normal(1, D, seed=805)
    values = []
    for copies in (1, 2, 7):
        views = torch.cat((anchor, prototypes[3].repeat(copies, 1)))
        target = torch.tensor([1] + [3] * copies)
        values.append(balanced_contrastive(views, prototypes, target, reduction="none")[0])
    assert_close(values[1], values[0])
    assert_close(values[2], values[0])


def test_length_does_not_matter() -> None:
    given = leaves(2)
    longer = {name: leaf * torch.arange(1.0, len(leaf) + 1)[:, None] for name, leaf in given.items()}
    assert_close(balanced_contrastive(**longer, target=TARGET), balanced_contrastive(**given, target=TARGET))


def test_a_view_without_direction() -> None:
    given = leaves(2)
    given["views"][4] = 0
    found = gradients(lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET), given)
    assert all(value.isfinite().all() for value in found.values())
    assert (found["views"][4] == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.07, 0.01])
def test_float32_is_as_good_as_eager(temperature: float) -> None:
    given = leaves(2, torch.float32)
    wide = {name: leaf.double() for name, leaf in given.items()}
    exact = gradients(lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(), wide)
    eager = gradients(lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(), given)
    ours = gradients(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, temperature=temperature), given
    )
    for name, value in exact.items():
        assert error(ours[name], value) <= error(eager[name], value) + TOLERANCE[torch.float32], name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_half_precision(temperature: float, dtype: torch.dtype) -> None:
    """The self-similarity 1 / T would be the row's maximum, and all else 0 in float16: the arithmetic is float32."""
    options: Any = {"temperature": temperature}
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, **options),
        lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(),
        leaves(2, dtype),
        dtype,
    )


def test_autocast_does_not_round_the_similarities() -> None:
    given = leaves(2, torch.float32)
    plain = balanced_contrastive(**given, target=TARGET, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = balanced_contrastive(**given, target=TARGET, temperature=0.01)
    assert cast.dtype == torch.float32
    assert_close(cast, plain)


def bases(name: str) -> tuple[losses.Loss, Any]:
    """The classification part and its formula for cosines [N, C] times 30."""
    prior = (COUNTS / COUNTS.sum()).log()
    if name == "logit adjustment":
        base = losses.LogitAdjustmentLoss(COUNTS)
        return base, lambda cosine: torch.nn.functional.cross_entropy(30 * cosine + prior, TARGET)

    def dbm(cosine: Tensor) -> Tensor:
        rows = []
        for i, own in enumerate(TARGET.tolist()):
            margin = 0.2 * COUNTS.min() / COUNTS[own]
            hard = float(cosine[i].argmax() != own)
            turned = torch.cos(cosine[i, own].acos() + margin * (1 + hard * (1 - cosine[i, own]) / 2))
            logit = torch.stack([turned if c == own else cosine[i, c] for c in range(C)])
            rows.append((30 * logit + prior).logsumexp(0) - 30 * turned - prior[own])
        return torch.stack(rows).mean()

    return losses.DBMLoss(COUNTS, 0.2, scale=30.0, base="bs"), dbm


def norm(rows: Tensor, part: torch.nn.BatchNorm1d, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm in training."""
    centred = rows - rows.mean(0)
    spread = (centred.square().mean(0) + part.eps).sqrt()
    return centred / spread * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]


def dense_head(head: heads.BalancedContrastiveHead, formula: Any, features: Tensor, **state: Tensor) -> Tensor:
    """2 L_base of the first view + 0.6 BalSCL of all, prototypes from the raw class weights."""

    def project(name: str, rows: Tensor) -> Tensor:
        inner = rows @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
        inner = norm(inner, getattr(head, name)[1], state, name).clamp_min(0)
        return inner @ state[f"{name}.3.weight"].T + state[f"{name}.3.bias"]

    first = features[:N]
    value = unit(first) @ unit(state["weight"]).T
    if head.bias is not None:
        value = (first @ state["weight"].T + state["bias"]) / 30
    contrastive = dense(project("projection", features), project("prototypes", state["weight"]), TARGET, 0.1).mean()
    return 2 * formula(value) + 0.6 * contrastive


@pytest.mark.parametrize(
    "name, classifier", [("logit adjustment", "cosine"), ("logit adjustment", "linear"), ("dbm", "cosine")]
)
@pytest.mark.parametrize("views", [1, 2])
def test_head(views: int, name: str, classifier: Any) -> None:
    """Value, and the gradients of features, class weights and both projections."""
    base, formula = bases(name)
    head = heads.BalancedContrastiveHead(
        D, C, losses.BalancedContrastiveLoss(base), cosine=classifier, hidden=6, out_features=3
    ).double()
    features = normal(views * N, D, seed=806).requires_grad_()
    value = head(features, TARGET)
    value.backward()
    state = {key: part.detach().clone().requires_grad_() for key, part in head.named_parameters()}
    leaf = features.detach().clone().requires_grad_()
    expected = dense_head(head, formula, leaf, **state)
    expected.backward()
    assert_close(value, expected)
    assert_close(features.grad, leaf.grad, name="features")
    for key, part in head.named_parameters():
        assert part.grad is not None, key
        assert_close(part.grad, state[key].grad, name=key)
    shown = head(features[:N].detach())
    plain = (
        features[:N] @ head.weight.T + head.bias if classifier == "linear" else unit(features[:N]) @ unit(head.weight).T
    )
    assert_close(shown, plain.detach())


def test_loss_module() -> None:
    """Factors and temperature, called with the classifier's output."""
    base, _ = bases("logit adjustment")
    loss = losses.BalancedContrastiveLoss(base, classification_weight=0.7, contrastive_weight=1.9, temperature=0.3)
    logits = normal(N, C, seed=807)
    given = leaves(2)
    expected = 0.7 * torch.nn.functional.cross_entropy(logits + COUNTS.log(), TARGET)
    expected = expected + 1.9 * dense(**given, target=TARGET, temperature=0.3).mean()
    assert_close(loss(logits, TARGET, **given), expected)
    assert loss.input_kind == "logits"
    loss.set_weight(torch.arange(1.0, C + 1))
    weight = torch.arange(1.0, C + 1, dtype=torch.float64)
    other = torch.nn.functional.cross_entropy(logits + COUNTS.log(), TARGET, weight)
    assert_close(
        loss(logits, TARGET, **given),
        0.7 * other + 1.9 * dense(**given, target=TARGET, temperature=0.3).mean(),
    )


def test_state_and_dtype() -> None:
    base, _ = bases("dbm")
    head = heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(base))
    features = normal(2 * N, D, seed=808, dtype=torch.float32)
    head(features, TARGET)
    other = heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(losses.DBMLoss(COUNTS, 0.1, base="bs")))
    other.load_state_dict(head.state_dict())
    head.eval()
    other.eval()
    assert torch.equal(head(features, TARGET), other(features, TARGET))
    assert head.double().loss.base.offset.dtype == head.half().loss.base.offset.dtype == torch.float64
    before = head.weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.weight, before)
    assert head.prototypes[1].running_mean.abs().sum() == 0


def test_published_defaults() -> None:
    loss = losses.BalancedContrastiveLoss(losses.LogitAdjustmentLoss(COUNTS))
    assert (loss.classification_weight, loss.contrastive_weight, loss.temperature) == (2.0, 0.6, 0.1)
    head = heads.BalancedContrastiveHead(D, C, loss)
    assert (head.scale, head.projection[3].out_features, head.prototypes[0].out_features) == (30.0, 128, D)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_compile() -> None:
    torch.compiler.reset()
    compiled = torch.compile(balanced_contrastive, fullgraph=True, backend="aot_eager")
    assert_same(
        lambda views, prototypes: compiled(views, prototypes, TARGET),
        lambda views, prototypes: dense(views, prototypes, TARGET, 0.1).mean(),
        leaves(2),
    )


def test_operators() -> None:
    """torch's own check of schema, fake kernel and tracing; an empty place and a row that sees all keys."""
    query, key = normal(N, D, seed=809), normal(C + 2, D, seed=810)
    key_class = torch.tensor([0, 1, -1, 1, 2, 0, 4])
    left_out = torch.tensor([0, 5, -1, 1, 3, 4, -1, -1, -1])
    problem = (query, key, TARGET, key_class, normal(C + 2, seed=811), left_out, 2)
    torch.library.opcheck(keys.forward_op, problem)
    found = keys.forward_op(*problem)
    slopes = [normal(N, seed=seed) for seed in (812, 813)]
    torch.library.opcheck(keys.backward_op, (*problem, *found, *slopes, [True, False]))


ROWS, PROTOTYPES = torch.randn(2 * N, D), torch.randn(C, D)
BASE = losses.LogitAdjustmentLoss(COUNTS)
BCL = losses.BalancedContrastiveLoss
ERRORS = [
    ("temperature", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET, temperature=0.0)),
    ("reduction", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET, reduction="avg")),  # type: ignore[arg-type]
    ("views", lambda: balanced_contrastive(ROWS[0], PROTOTYPES, TARGET)),
    ("prototypes", lambda: balanced_contrastive(ROWS, PROTOTYPES[:, :-1], TARGET)),
    ("target", lambda: balanced_contrastive(ROWS[1:], PROTOTYPES, TARGET)),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET + 2)),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET.float())),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, torch.full((N,), -100))),
    ("base", lambda: BCL("ce")),  # type: ignore[arg-type]
    ("base", lambda: BCL(losses.CrossEntropyLoss(reduction="sum"))),
    ("base", lambda: BCL(losses.EstimatedOffsetLoss(C, D))),
    ("classification_weight", lambda: BCL(BASE, classification_weight=-1.0)),
    ("contrastive_weight", lambda: BCL(BASE, contrastive_weight=math.nan)),
    ("temperature", lambda: BCL(BASE, temperature=0.0)),
    ("loss", lambda: heads.BalancedContrastiveHead(D, C, BASE)),  # type: ignore[arg-type]
    ("cosine", lambda: heads.BalancedContrastiveHead(D, C, BCL(losses.DBMLoss(COUNTS)), cosine="linear")),
    ("scale", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE), scale=0.0)),
    ("hidden", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE), hidden=0)),
    ("features", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE))(ROWS[:, 1:], TARGET)),
    ("target", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE))(ROWS[1:], TARGET)),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()


def test_random_batches() -> None:
    """Many classes, some without a sample."""
    target = classes_of(21, 40, 814)
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, target, temperature=0.2),
        lambda views, prototypes: dense(views, prototypes, target, 0.2).mean(),
        {"views": normal(42, 7, seed=815), "prototypes": normal(40, 7, seed=816)},
    )
