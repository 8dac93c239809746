"""Laws of the weights of rows, which every named loss takes that is a sum over its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_loss import HEADS
from helpers import assert_same, classes_of, normal
from test_laws import COSINE, LOSSES, TARGET, VECTORS, input_of, made
from tolerances import assert_close
from torch import Tensor
from torch.func import functional_call

from lt_kernels import functional, losses, memory_budget
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import CosineHead, LinearHead

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),  # torch's compiler
]
AS_SHIPPED = True

ROWS = len(TARGET)
CLASSES, FEATURES = VECTORS["linear_weight"].shape
OF_ROWS = sorted(set(LOSSES) - {"LADELoss"})
TIMES = torch.randint(0, 4, (ROWS,), generator=torch.Generator().manual_seed(201))
BY_ROW = normal(ROWS, seed=202).abs().index_fill(0, torch.tensor([2, 7]), 0.0)
SECOND = TARGET.flip(0)
assert bool((TIMES == 0).any())


def head_of(name: str, **options: Any) -> Any:
    """A head of features with a loss."""
    kind = CosineHead if name in COSINE else LinearHead
    return kind(FEATURES, CLASSES, made(name), **options).double()


def called(head: Any, input: Tensor, linear_weight: Tensor, target: Any, rows: Tensor | None = None) -> Tensor:
    """What a head without a bias says with these class weights."""
    bias = {"bias": torch.zeros(CLASSES).double()} if getattr(head, "bias", None) is not None else {}
    return functional_call(head, {"weight": linear_weight, **bias}, (input, target, rows))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OF_ROWS)
def test_weights_of_one_are_none(name: str, reduction: str) -> None:
    loss = made(name, reduction=reduction, z_loss=0.1)
    ones = torch.ones(ROWS)
    for target in (TARGET, MixedTarget(TARGET, SECOND, 0.3)):
        assert_same(
            lambda z, y=target: loss(z, y, sample_weight=ones), lambda z, y=target: loss(z, y), {"z": input_of(name)}
        )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", OF_ROWS)
def test_whole_weights_repeat_rows(name: str, reduction: str) -> None:
    """0 drops a row; the counts of the batch and what a mean divides by are those of the repeated rows."""
    loss = made(name, reduction=reduction, z_loss=0.1)
    assert_same(
        lambda z: loss(z, TARGET, sample_weight=TIMES.double()),
        lambda z: loss(z.repeat_interleave(TIMES, 0), TARGET.repeat_interleave(TIMES)),
        {"z": input_of(name)},
    )


@pytest.mark.parametrize("name", OF_ROWS)
def test_whole_weights_repeat_two_targets(name: str) -> None:
    """With the batch's counts the second target of a row that counts is the first of another one."""
    loss, lam, times = made(name), normal(ROWS, seed=203).sigmoid(), TIMES * TIMES.flip(0)
    again = (one.repeat_interleave(times) for one in (TARGET, SECOND, lam))
    repeated = MixedTarget(*again)
    assert_same(
        lambda z: loss(z, MixedTarget(TARGET, SECOND, lam), sample_weight=times.double()),
        lambda z: loss(z.repeat_interleave(times, 0), repeated),
        {"z": input_of(name)},
    )


@pytest.mark.parametrize("name", [name for name in OF_ROWS if name != "ARBLoss"])
def test_a_weight_is_a_factor(name: str) -> None:
    """Of each row's loss; a row of weight 0 has no gradient whatever it holds."""
    weighed, plain = made(name, reduction="none"), made(name, reduction="none")
    assert_same(
        lambda z: weighed(z, TARGET, sample_weight=BY_ROW), lambda z: BY_ROW * plain(z, TARGET), {"z": input_of(name)}
    )
    z = input_of(name).index_fill(0, torch.tensor([2, 7]), torch.nan).requires_grad_()
    made(name)(z, TARGET, sample_weight=BY_ROW).backward()
    assert z.grad is not None
    assert not z.grad[[2, 7]].any()
    assert bool(z.grad.isfinite().all())


@pytest.mark.parametrize("bytes", [2**20, 8 * 60])
@pytest.mark.parametrize("name", OF_ROWS)
def test_a_head_weighs_rows(name: str, bytes: int) -> None:
    """As rows that are repeated, also of more logits than the memory budget holds."""
    head = head_of(name)
    with memory_budget(bytes):
        assert_same(
            lambda input, linear_weight: called(head, input, linear_weight, TARGET, TIMES.double()),
            lambda input, linear_weight: called(
                head, input.repeat_interleave(TIMES, 0), linear_weight, TARGET.repeat_interleave(TIMES)
            ),
            VECTORS,
        )


@pytest.mark.parametrize("name", ["SphereFaceLoss", "ArcFaceLoss", "DBMLoss"])
def test_a_head_with_several_centers_weighs_rows(name: str) -> None:
    head, weight = head_of(name, centers=2), normal(2 * CLASSES, FEATURES, seed=204)
    again = TARGET.repeat_interleave(TIMES)
    assert_same(
        lambda input: called(head, input, weight, TARGET, TIMES.double()),
        lambda input: called(head, input.repeat_interleave(TIMES, 0), weight, again),
        {"input": VECTORS["input"]},
    )


@pytest.mark.parametrize("kind", ["linear", "cosine", "centers"])
def test_features_of_more_dimensions(kind: str) -> None:
    """[B, T, d] with weights [B, T], as of flat rows; without a reduction in the target's shape."""
    loss = losses.Loss(reduction="none")
    head: Any = LinearHead(FEATURES, CLASSES, loss) if kind == "linear" else CosineHead(FEATURES, CLASSES, loss)
    head = CosineHead(FEATURES, CLASSES, loss, centers=2) if kind == "centers" else head
    head, x = head.double(), VECTORS["input"]
    flat = head(x, TARGET, BY_ROW)
    assert_close(flat, BY_ROW * head(x, TARGET))
    found = head(x.reshape(2, -1, FEATURES), TARGET.reshape(2, -1), sample_weight=BY_ROW.reshape(2, -1))
    assert_close(found, flat.reshape(2, -1))


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "ARBLoss"])
def test_probabilities(name: str) -> None:
    """Rows are repeated as those of indices are."""
    soft, loss = normal(ROWS, CLASSES, seed=205).softmax(1), made(name)
    assert_same(
        lambda z: loss(z, soft, sample_weight=TIMES.double()),
        lambda z: loss(z.repeat_interleave(TIMES, 0), soft.repeat_interleave(TIMES, 0)),
        {"z": input_of(name)},
    )


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "ARBLoss"])
def test_places_of_an_image(name: str) -> None:
    """Logits [N, C, H, W] and weights [N, H, W]."""
    z, y, rows = normal(2, CLASSES, 3, 2, seed=206), classes_of(12, CLASSES, 207), normal(12, seed=208).abs()
    loss = made(name)
    flat = loss(z.movedim(1, -1).reshape(-1, CLASSES), y, sample_weight=rows)
    assert_close(loss(z, y.reshape(2, 3, 2), sample_weight=rows.reshape(2, 3, 2)), flat)


def test_sphereface_with_norms() -> None:
    loss, norms = made("SphereFaceLoss"), normal(ROWS, seed=209).exp()
    assert_same(
        lambda z, norms: loss(z, TARGET, norms, sample_weight=TIMES.double()),
        lambda z, norms: loss(
            z.repeat_interleave(TIMES, 0), TARGET.repeat_interleave(TIMES), norms.repeat_interleave(TIMES)
        ),
        {"z": input_of("SphereFaceLoss"), "norms": norms},
    )


def test_the_function_with_the_same_weights() -> None:
    head = head_of("BalancedSoftmaxLoss")
    given: dict[str, Any] = {"offset": head.loss.offset, "sample_weight": BY_ROW}
    exact = functional.linear_cross_entropy(VECTORS["input"], head.weight, TARGET, linear_bias=head.bias, **given)
    assert_close(head(VECTORS["input"], TARGET, sample_weight=BY_ROW), exact)


def test_sampled_classes() -> None:
    """A share of 1 is all classes; of fewer, the weights are factors of the same draw's losses."""
    x, plain = VECTORS["input"], losses.CrossEntropyLoss(reduction="none")
    for share in (1.0, 0.4):
        head = LinearHead(FEATURES, CLASSES, plain, sample=share).double()
        torch.manual_seed(3)
        exact = BY_ROW * head(x, TARGET % 2)
        torch.manual_seed(3)
        assert_close(head(x, TARGET % 2, sample_weight=BY_ROW), exact)


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "ARBLoss", "DBMLoss"])
def test_gradcheck(name: str) -> None:
    loss = made(name, z_loss=0.1, **({} if name in COSINE else {"softcap": 2.0}))
    z = input_of(name).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, TARGET, sample_weight=BY_ROW), (z,))


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "ARBLoss"])
def test_compiled(name: str) -> None:
    head = LinearHead(FEATURES, CLASSES, made(name, z_loss=0.1, softcap=2.0)).double()
    torch.compiler.reset()
    compiled = torch.compile(head, fullgraph=True)
    assert_close(compiled(VECTORS["input"], TARGET, sample_weight=BY_ROW), head(VECTORS["input"], TARGET, BY_ROW))


WHOLE = {"linear lade", "linear offset", "bcl", "gml", "ncl"}


@pytest.mark.parametrize("name", HEADS)
def test_a_loss_of_the_whole_batch_takes_no_weights(name: str) -> None:
    """Its error says why, from the head and from the loss itself."""
    head = HEADS[name]()
    rows = getattr(head, "experts", 1) * head.in_features
    input, target, weights = torch.randn(6, rows), torch.tensor([0, 1, 2, 3, 0, 1]), torch.ones(6)
    if name not in WHOLE:
        head(input, target, sample_weight=weights)
        return
    for call in (head, head.loss):
        with pytest.raises(ValueError, match=r"sample_weight must be None with \w+: .* (batch|rows|other).*; got"):
            call(input, target, sample_weight=weights)


@pytest.mark.parametrize("call", ["loss", "head", "places", "centers", "counts"])
def test_bad_weights(call: str) -> None:
    x, z = VECTORS["input"], input_of("ARBLoss")
    calls = {
        "loss": lambda rows: losses.CrossEntropyLoss()(z, TARGET, sample_weight=rows),
        "counts": lambda rows: losses.ARBLoss(counts="batch")(z, TARGET, sample_weight=rows),
        "head": lambda rows: head_of("LogitAdjustmentLoss")(x, TARGET, rows),
        "places": lambda rows: head_of("LogitAdjustmentLoss")(x[None], TARGET[None], rows),
        "centers": lambda rows: head_of("ArcFaceLoss", centers=2)(x, TARGET, rows),
    }
    places = [1, ROWS] if call == "places" else [ROWS]
    bad = calls[call]
    for rows, kind in ((torch.ones(ROWS + 1), ValueError), (torch.ones(()), ValueError), (2.0, TypeError)):
        with pytest.raises(kind, match="sample_weight must"):
            bad(rows)
    with pytest.raises(TypeError, match="sample_weight must"):
        bad(torch.ones(places, dtype=torch.int64))
    with pytest.raises(TypeError, match="sample_weight must not require a gradient"):
        bad(torch.ones(places).requires_grad_())


def test_prediction_takes_no_weights() -> None:
    for name in ("ArcFaceLoss", "LogitAdjustmentLoss"):
        with pytest.raises(ValueError, match="sample_weight must be None without a target"):
            head_of(name)(VECTORS["input"], sample_weight=BY_ROW)
