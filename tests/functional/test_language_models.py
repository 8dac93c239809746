"""What language models ask for: weights of rows, a z-loss, features of many dimensions, targets further on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, classes_of, gradients, normal
from torch import Tensor

from lt_kernels import memory_budget
from lt_kernels.functional import Accuracy, ArcFace, MixedTarget, cosine_margin_cross_entropy
from lt_kernels.functional import linear_cross_entropy as linear
from lt_kernels.functional import offset_cross_entropy as offset_ce

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True

B, T, C, D = 3, 5, 7, 4
TARGET = classes_of(B * T, C, 801).index_fill(0, torch.tensor([4, 8]), -100).reshape(B, T)
BY_ROW = normal(B, T, seed=802).abs().index_fill(1, torch.tensor(1), 0.0)
WEIGHT, OFFSET = normal(C, seed=803).abs(), normal(C, seed=804)
LEAVES = {"x": normal(B, T, D, seed=805), "w": normal(C, D, seed=806)}
SOFT = normal(B, T, C, seed=807).softmax(-1)


def dense(u: Tensor, target: Tensor, rows: Tensor | None, z_loss: float, reduction: str) -> Tensor:
    """The formulas, of all of a row's u = logits + offset [..., C]."""
    kept = (target != -100).double() if rows is None else (target != -100) * rows
    chosen = torch.where(target == -100, 0, target)
    nll = -u.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    loss = kept * (WEIGHT[chosen] * nll + z_loss * u.logsumexp(-1) ** 2)
    divisor = (kept * WEIGHT[chosen]).sum() if reduction == "mean" else 1.0
    return loss if reduction == "none" else loss.sum() / divisor


@pytest.mark.parametrize("budget", [2**20, 8 * 10])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("rows", [None, BY_ROW], ids=["alike", "weighed"])
def test_weights_of_rows_and_z_loss(rows: Tensor | None, z_loss: float, reduction: Any, budget: int) -> None:
    """As written down; of features in one piece and in slabs, and of their logits."""
    options: dict[str, Any] = {"z_loss": z_loss, "sample_weight": rows, "reduction": reduction, "weight": WEIGHT}
    with memory_budget(budget):
        assert_same(
            lambda x, w: linear(x, w, TARGET, offset=OFFSET, **options),
            lambda x, w: dense(x @ w.T + OFFSET, TARGET, rows, z_loss, reduction),
            LEAVES,
        )
    assert_same(
        lambda x, w: offset_ce((x @ w.T).movedim(-1, 1), TARGET, offset=OFFSET, **options),
        lambda x, w: dense(x @ w.T + OFFSET, TARGET, rows, z_loss, reduction),
        LEAVES,
    )


def test_probabilities_of_each_place() -> None:
    def formula(x: Tensor, w: Tensor) -> Tensor:
        log_p, lse = (x @ w.T).log_softmax(-1), (x @ w.T).logsumexp(-1)
        return (BY_ROW * (-(SOFT * log_p).sum(-1) + 0.2 * lse**2)).sum() / BY_ROW.sum()

    assert_same(lambda x, w: linear(x, w, SOFT, sample_weight=BY_ROW, z_loss=0.2), formula, LEAVES)


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("target", ["index", "mixed", "soft"])
def test_a_row_of_weight_0_has_no_gradient_whatever_it_holds(target: str, special: float) -> None:
    """And the others are as if it were not there."""
    rows = BY_ROW.reshape(-1)
    logits = normal(B * T, C, seed=808)
    bad = torch.where((rows == 0)[:, None], special, logits)
    flat = TARGET.reshape(-1)
    y: Any = {"index": flat, "mixed": MixedTarget(flat, flat.flip(0), 0.3), "soft": SOFT.reshape(-1, C)}[target]
    found = gradients(lambda z: offset_ce(z, y, sample_weight=rows, z_loss=0.1), {"z": bad})
    clean = gradients(lambda z: offset_ce(z, y, sample_weight=rows, z_loss=0.1), {"z": logits})
    assert (found["z"][rows == 0] == 0).all()
    assert found["value"].isfinite()
    assert (found["z"] == clean["z"]).all()


def test_equal_weights_change_nothing_in_a_mean() -> None:
    assert_same(
        lambda x, w: linear(x, w, TARGET, sample_weight=torch.full((B, T), 0.25)),
        lambda x, w: linear(x, w, TARGET),
        LEAVES,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_all_weights_0(reduction: Any) -> None:
    """No loss, a mean of NaN, and no gradient, as where all rows are ignored."""
    found = gradients(lambda x, w: linear(x, w, TARGET, sample_weight=0 * BY_ROW, reduction=reduction), LEAVES)
    assert found["value"].isnan() if reduction == "mean" else found["value"] == 0
    assert not found["x"].any()
    assert not found["w"].any()


@pytest.mark.parametrize("shift", [1, 2, T, T + 3])
def test_shift_is_the_target_further_on(shift: int) -> None:
    """Features and labels sliced, as is usual, give the same sum."""
    options: dict[str, Any] = {"reduction": "sum", "sample_weight": BY_ROW, "z_loss": 0.1}
    later = options | {"sample_weight": BY_ROW[:, shift:]}
    assert_same(
        lambda x, w: linear(x, w, TARGET, shift=shift, **options),
        lambda x, w: linear(x[:, : max(T - shift, 0)], w, TARGET[:, shift:], **later),
        LEAVES,
    )
    assert_same(
        lambda x, w: offset_ce((x @ w.T).movedim(-1, 1), TARGET, shift=shift, **options),
        lambda x, w: linear(x, w, TARGET, shift=shift, **options),
        LEAVES,
    )


def test_shift_of_a_pair_and_of_each_loss() -> None:
    """Two targets move alike; without a reduction the last places have a loss of 0."""
    y = MixedTarget(TARGET, TARGET.flip(0), 0.3)
    moved = MixedTarget(*(F.pad(one[:, 1:], (0, 1), value=-100) for one in (y.first, y.second)), 0.3)
    assert_same(lambda x, w: linear(x, w, y, shift=1), lambda x, w: linear(x, w, moved), LEAVES)
    each = linear(LEAVES["x"], LEAVES["w"], TARGET, shift=2, reduction="none")
    assert each.shape == (B, T)
    assert not each[:, -2:].any()


def test_features_of_many_dimensions_are_rows() -> None:
    for budget in (2**20, 80):
        with memory_budget(budget):
            assert_same(
                lambda x, w: linear(x, w, TARGET, weight=WEIGHT),
                lambda x, w: linear(x.reshape(-1, D), w, TARGET.reshape(-1), weight=WEIGHT),
                LEAVES,
            )
    by_place = normal(B, T, C, seed=809)
    assert_same(
        lambda x, w: linear(x, w, TARGET, offset=by_place, reduction="none"),
        lambda x, w: linear(x.flatten(0, 1), w, TARGET.flatten(), offset=by_place.flatten(0, 1), reduction="none").view(
            B, T
        ),
        LEAVES,
    )
    assert_same(
        lambda x, w: cosine_margin_cross_entropy(x, w, TARGET, margin=ArcFace(0.4), sample_weight=BY_ROW),
        lambda x, w: cosine_margin_cross_entropy(
            x.reshape(-1, D), w, TARGET.reshape(-1), margin=ArcFace(0.4), sample_weight=BY_ROW.reshape(-1)
        ),
        LEAVES,
    )


@pytest.mark.parametrize("budget", [2**20, 80])
@pytest.mark.parametrize("shift", [0, 1])
def test_accuracy_counts_what_the_largest_logit_has_right(shift: int, budget: int) -> None:
    """Over two calls; the loss and its gradients are the same as without."""
    accuracy, target, rows = Accuracy(), TARGET.clamp_max(2), BY_ROW
    leaves = {"x": LEAVES["x"], "w": LEAVES["w"][:3]}
    options: dict[str, Any] = {"offset": 5 * OFFSET[:3], "shift": shift, "sample_weight": rows, "z_loss": 0.1}
    with memory_budget(budget):
        assert_same(
            lambda x, w: linear(x, w, target, accuracy=accuracy, **options),
            lambda x, w: linear(x, w, target, **options),
            leaves,
        )
    logits = leaves["x"] @ leaves["w"].T
    offset_ce(logits.movedim(-1, 1), target, accuracy=accuracy, **options)
    counted = ((target != -100) & (rows != 0))[:, shift:]
    right = int(((logits.argmax(-1)[:, : T - shift] == target[:, shift:]) & counted).sum())
    assert accuracy.right is not None
    assert accuracy.counted is not None
    assert (int(accuracy.right), int(accuracy.counted)) == (2 * right, 2 * int(counted.sum()))
    assert 0 < right < int(counted.sum())
    assert float(accuracy.value()) == right / int(counted.sum())
    accuracy.reset()
    with pytest.raises(RuntimeError, match="accuracy must be given"):
        accuracy.value()


def test_accuracy_of_groups_of_rows() -> None:
    """Counted group by group where the logits do not fit, as of whole logits."""
    x, w = normal(600, 256, seed=810, dtype=torch.float32), normal(300, 256, seed=811, dtype=torch.float32)
    target, counts = (x @ w.T).topk(2).indices[torch.arange(600), classes_of(600, 2, 812)], []
    for bytes in (2**22, 700_000):
        leaves, accuracy = (x.clone().requires_grad_(), w.clone().requires_grad_()), Accuracy()
        with memory_budget(bytes):
            linear(*leaves, target, accuracy=accuracy).backward()
        assert accuracy.right is not None
        counts.append(int(accuracy.right))
    assert counts == [int((classes_of(600, 2, 812) == 0).sum())] * 2


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_accuracy_in_a_compiled_step() -> None:
    """It is counted in the graph, without a break."""
    accuracy = Accuracy()

    def step(x: Tensor, w: Tensor) -> Tensor:
        return linear(x, w, TARGET, accuracy=accuracy, shift=1)

    x, w = LEAVES["x"], LEAVES["w"]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    compiled(x, w), compiled(x, w)
    plain = Accuracy()
    linear(x, w, TARGET, accuracy=plain, shift=1)
    assert accuracy.right is not None
    assert plain.right is not None
    assert int(accuracy.right) == 2 * int(plain.right)


@pytest.mark.parametrize("budget", [2**20, 8 * 10])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_softcap(reduction: Any, budget: int) -> None:
    """The offset is added after the cap; features in one piece and in slabs, and their logits."""
    options: dict[str, Any] = {"reduction": reduction, "weight": WEIGHT, "z_loss": 0.1, "sample_weight": BY_ROW}
    bias = 2 * OFFSET

    def formula(x: Tensor, w: Tensor, b: Tensor, o: Tensor) -> Tensor:
        return dense(1.5 * torch.tanh((x @ w.T + b) / 1.5) + o, TARGET, BY_ROW, 0.1, reduction)

    def ours(x: Tensor, w: Tensor, b: Tensor, o: Tensor) -> Tensor:
        return linear(x, w, TARGET, linear_bias=b, offset=o, softcap=1.5, **options)

    def of_logits(x: Tensor, w: Tensor, b: Tensor, o: Tensor) -> Tensor:
        return offset_ce((x @ w.T + b).movedim(-1, 1), TARGET, offset=o, softcap=1.5, **options)

    leaves = LEAVES | {"b": bias, "o": OFFSET}
    with memory_budget(budget):
        assert_same(ours, formula, leaves)
        assert_same(of_logits, formula, leaves)


@pytest.mark.parametrize("budget", [2**20, 8 * 10])
def test_softcap_of_other_targets(budget: int) -> None:
    """Two targets a row, probabilities, and the rows that are right."""
    pair, accuracy = MixedTarget(TARGET, TARGET.flip(0), 0.3), Accuracy()

    def capped(x: Tensor, w: Tensor) -> Tensor:
        return (1.5 * torch.tanh(x @ w.T / 1.5)).movedim(-1, 1)

    with memory_budget(budget):
        assert_same(lambda x, w: linear(x, w, pair, softcap=1.5), lambda x, w: offset_ce(capped(x, w), pair), LEAVES)
        of_logits = SOFT.movedim(-1, 1)
        assert_same(
            lambda x, w: linear(x, w, SOFT, softcap=1.5), lambda x, w: offset_ce(capped(x, w), of_logits), LEAVES
        )
        linear(LEAVES["x"], LEAVES["w"], TARGET, softcap=1.5, accuracy=accuracy)
    assert accuracy.right is not None
    assert int(accuracy.right) == int((capped(**LEAVES).argmax(1) == TARGET).sum())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample_weight", {"sample_weight": BY_ROW[:, 1:]}),
        ("sample_weight", {"sample_weight": BY_ROW.long()}),
        ("sample_weight", {"sample_weight": 2.0}),
        ("sample_weight", {"sample_weight": BY_ROW.clone().requires_grad_()}),
        ("z_loss", {"z_loss": -1e-4}),
        ("z_loss", {"z_loss": None}),
        ("shift", {"shift": -1}),
        ("shift", {"shift": 1.0}),
        ("shift", {"shift": 1, "target": SOFT}),
        ("softcap", {"softcap": 0.0}),
        ("softcap", {"softcap": -30.0}),
        ("softcap", {"softcap": torch.nan}),
        ("accuracy", {"accuracy": True}),
        ("accuracy", {"accuracy": Accuracy(), "target": SOFT}),
        ("target", {"target": TARGET.reshape(-1)}),
        ("target", {"target": SOFT.movedim(-1, 1)}),
        ("input", {"input": LEAVES["x"][..., 1:]}),
    ],
)
def test_bad_arguments_are_named(name: str, options: dict[str, Any]) -> None:
    given = {"input": LEAVES["x"], "linear_weight": LEAVES["w"], "target": TARGET} | options
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
        linear(**given)
