"""GML: cross-entropy over class-wise log-mean-exps, the learnable temperature, and distillation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, gradients, normal
from published_views import class_mean_cross_entropy as dense
from published_views import unit
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import losses, memory_budget
from lt_kernels.contrastive import class_mean_cross_entropy

pytestmark = pytest.mark.usefixtures("kernels")

N, C, D, E = 8, 5, 6, 3
COUNTS = torch.tensor([50.0, 4.0, 30.0, 9.0, 7.0], dtype=torch.float64)
PRIOR = COUNTS / COUNTS.sum()
TARGET = torch.tensor([0, 0, 2, 1, 3, 0, 2, 4])
# Class 4 has no key but the row's own; class 1 has its own and another one; -1 is an empty place.
KEY_CLASS = torch.tensor([0, 2, -1, 1, 3, 0, 2, 4, 0, 1, -1, 3])
OWN = torch.tensor([0, 5, 1, 3, 4, -1, 6, 7])
K = len(KEY_CLASS)


def leaves(dtype: torch.dtype = torch.float64, spread: float = 1.0) -> dict[str, Tensor]:
    """Queries and keys."""
    given = {"query": normal(N, E, seed=821, spread=spread), "key": normal(K, E, seed=822, spread=spread)}
    return {name: leaf.to(dtype) for name, leaf in given.items()}


@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_term(spread: float, own: Tensor | None) -> None:
    assert_same(
        lambda query, key: class_mean_cross_entropy(query, key, TARGET, KEY_CLASS, PRIOR.log(), own),
        lambda query, key: dense(query, key, TARGET, KEY_CLASS, PRIOR, own),
        leaves(spread=spread),
    )


def test_term_in_slabs_of_a_budget() -> None:
    with memory_budget(300):
        assert_same(
            lambda query, key: class_mean_cross_entropy(query, key, TARGET, KEY_CLASS, PRIOR.log(), OWN),
            lambda query, key: dense(query, key, TARGET, KEY_CLASS, PRIOR, OWN),
            leaves(),
        )


def test_gradcheck() -> None:
    given = [leaf.requires_grad_() for leaf in leaves().values()]
    assert torch.autograd.gradcheck(
        lambda query, key: class_mean_cross_entropy(query, key, TARGET, KEY_CLASS, PRIOR.log(), OWN),
        given,
        fast_mode=True,
    )


def test_literal() -> None:
    """q.k = log 2 and log 4 for the row's class, log 5 for the other: 3 p_0 against 5 p_1."""
    key = torch.tensor([[2.0], [4.0], [5.0]]).log()
    loss = class_mean_cross_entropy(
        torch.ones(1, 1), key, torch.tensor([0]), torch.tensor([0, 0, 1]), torch.tensor([0.25, 0.75]).log()
    )
    assert_close(loss, torch.tensor(-math.log(0.75 / (0.75 + 3.75))))


@pytest.mark.parametrize("spread", [1.0, 60.0])
@pytest.mark.parametrize("own", [None, torch.tensor([7])])
def test_a_row_without_a_key_of_its_class_has_no_loss(own: Tensor | None, spread: float) -> None:
    """No NaN and no gradient: class 4 has no key, or none but the row's own, whose exponential may overflow."""
    key_class = torch.where(KEY_CLASS == 4, -1, KEY_CLASS) if own is None else KEY_CLASS
    found = gradients(
        lambda query, key: class_mean_cross_entropy(query, key, TARGET[-1:], key_class, PRIOR.log(), own),
        {"query": spread * leaves()["key"][7:8], "key": spread * leaves()["key"]},
    )
    assert all((value == 0).all() for value in found.values())


def test_an_empty_queue_is_no_loss() -> None:
    nothing = torch.full((K,), -1)
    found = gradients(lambda query, key: class_mean_cross_entropy(query, key, TARGET, nothing, PRIOR.log()), leaves())
    assert all((value == 0).all() for value in found.values())


def test_one_class_is_no_loss() -> None:
    zero = torch.zeros(N, dtype=torch.int64)
    loss = class_mean_cross_entropy(
        leaves()["query"], leaves()["key"], zero, torch.zeros_like(KEY_CLASS), torch.zeros(1)
    )
    assert loss == 0


def test_copies_of_keys_weigh_nothing() -> None:
    """A mean: the same key once or seven times, in any order."""
    given, plain = leaves(), []
    for copies in (1, 7):
        key = torch.cat((given["key"], given["key"][KEY_CLASS == 0].repeat(copies - 1, 1)))
        key_class = torch.cat((KEY_CLASS, torch.zeros(3 * (copies - 1), dtype=torch.int64)))
        order = torch.randperm(len(key))
        plain.append(class_mean_cross_entropy(given["query"], key[order], TARGET, key_class[order], PRIOR.log()))
    assert_close(plain[1], plain[0])


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_a_far_class_does_not_underflow(temperature: float) -> None:
    """A class whose keys are opposite is e^(-2 / T) below the row's maximum: 0 in float32, but not its logarithm."""
    query = torch.tensor([[1.0, 0.0]])
    key = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    uniform = torch.tensor([0.5, 0.5]).log()
    loss = class_mean_cross_entropy(query / temperature, key, torch.tensor([1]), torch.tensor([0, 1]), uniform)
    assert_close(loss, torch.tensor(2 / temperature))


@pytest.mark.parametrize("temperature", [0.1, 0.07, 0.01])
def test_float32_is_as_good_as_eager(temperature: float) -> None:
    given = {name: unit(leaf).float() for name, leaf in leaves().items()}
    wide = {name: leaf.double() for name, leaf in given.items()}

    def eager(query: Tensor, key: Tensor) -> Tensor:
        logits, score = query / temperature @ key.T, []
        for c in range(C):
            mine = logits[:, c == KEY_CLASS]
            score.append(mine.logsumexp(1) - math.log(mine.shape[1]) + PRIOR[c].log().to(query.dtype))
        return F.cross_entropy(torch.stack(score, 1), TARGET)

    exact, theirs = gradients(eager, wide), gradients(eager, given)
    ours = gradients(
        lambda query, key: class_mean_cross_entropy(query / temperature, key, TARGET, KEY_CLASS, PRIOR.log()), given
    )
    for name, value in exact.items():
        assert error(ours[name], value) <= error(theirs[name], value) + TOLERANCE[torch.float32], name


def dense_loss(
    logits: Tensor, query: Tensor, key: Tensor, log_temperature: Tensor, teacher: Tensor | None, **factors: float
) -> Tensor:
    """gamma L_sup + beta (L_con + L_conT) + alpha L_div, what is held constant detached."""
    query, key, adjusted = unit(query), unit(key), logits + PRIOR.log()
    loss = factors["classification_weight"] * F.cross_entropy(adjusted, TARGET)
    held, t = log_temperature.detach().exp(), 4.0
    first = dense(query / held, key, TARGET, KEY_CLASS, PRIOR, None)
    second = dense(query.detach() / log_temperature.exp(), key.detach(), TARGET, KEY_CLASS, PRIOR, OWN)
    loss = loss + factors["contrastive_weight"] * (first + second)
    if teacher is None:
        return loss
    ours, theirs = (logits / t).softmax(1), (teacher / t).softmax(1)
    return loss + factors["distillation_weight"] * t * t * (theirs * (theirs / ours).log()).sum(1).mean()


@pytest.mark.parametrize("with_teacher", [False, True])
def test_loss_module(with_teacher: bool) -> None:
    """Each factor, and the gradients of logits, queries, keys and the temperature."""
    factors = {"classification_weight": 0.7, "contrastive_weight": 1.4, "distillation_weight": 0.3}
    loss = losses.GMLLoss(losses.LogitAdjustmentLoss(COUNTS), COUNTS, temperature=0.2, **factors).double()
    teacher = normal(N, C, seed=823) if with_teacher else None
    given = {"logits": normal(N, C, seed=824), **leaves(), "log_temperature": torch.tensor(math.log(0.2)).double()}

    def ours(logits: Tensor, query: Tensor, key: Tensor, log_temperature: Tensor) -> Tensor:
        state = {"log_temperature": log_temperature}
        arguments = (logits, TARGET, query, key, KEY_CLASS, OWN)
        return torch.func.functional_call(loss, state, arguments, {"teacher": teacher})

    assert_same(ours, lambda **each: dense_loss(**each, teacher=teacher, **factors), given)


def test_distillation_of_cosines_takes_the_scale() -> None:
    loss = losses.GMLLoss(
        losses.DBMLoss(COUNTS, scale=12.0), COUNTS, distillation_weight=0.5, distillation_temperature=2.0
    )
    cosine, teacher = (normal(N, C, seed=seed).tanh() for seed in (825, 826))
    ours, theirs = (12 * cosine / 2).softmax(1), (12 * teacher / 2).softmax(1)
    assert_close(loss.distillation(cosine, teacher), 0.5 * 4 * (theirs * (theirs / ours).log()).sum(1).mean())
    assert loss.distillation(cosine, cosine) == 0
    assert loss.input_kind == "cosine"


def test_autocast_keeps_the_similarities() -> None:
    loss = losses.GMLLoss(losses.LogitAdjustmentLoss(COUNTS), COUNTS, temperature=0.01, classification_weight=0.0)
    given = (normal(N, C, seed=851).float(), TARGET, *leaves(torch.float32).values(), KEY_CLASS, OWN)
    plain = loss(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(*given)
    assert_close(cast, plain)


GML, BASE = losses.GMLLoss, losses.LogitAdjustmentLoss(COUNTS)
X, KEYS, LOG = torch.randn(N, E), torch.randn(K, E), PRIOR.log()
ERRORS = [
    ("key", lambda: class_mean_cross_entropy(X, KEYS[:, 1:], TARGET, KEY_CLASS, LOG)),
    ("query", lambda: class_mean_cross_entropy(X[0], KEYS, TARGET, KEY_CLASS, LOG)),
    ("target", lambda: class_mean_cross_entropy(X, KEYS, TARGET - 1, KEY_CLASS, LOG)),
    ("key_class", lambda: class_mean_cross_entropy(X, KEYS, TARGET, KEY_CLASS[1:], LOG)),
    ("key_class", lambda: class_mean_cross_entropy(X, KEYS, TARGET, KEY_CLASS + 2, LOG)),
    ("own_key", lambda: class_mean_cross_entropy(X, KEYS, TARGET, KEY_CLASS, LOG, OWN + 5)),
    ("own_key", lambda: class_mean_cross_entropy(X, KEYS, TARGET, KEY_CLASS, LOG, OWN[1:])),
    ("base", lambda: GML(losses.CrossEntropyLoss(reduction="none"), COUNTS)),
    ("class_counts", lambda: GML(BASE, [1, -1])),
    ("temperature", lambda: GML(BASE, COUNTS, temperature=0.0)),
    ("contrastive_weight", lambda: GML(BASE, COUNTS, contrastive_weight=-1.0)),
    ("distillation_weight", lambda: GML(BASE, COUNTS, distillation_weight=math.inf)),
    ("distillation_temperature", lambda: GML(BASE, COUNTS, distillation_temperature=0.0)),
    ("teacher", lambda: GML(BASE, COUNTS).distillation(X, X[1:])),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()
