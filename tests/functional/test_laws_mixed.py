"""Laws of mixed targets, of the fused functions against their parts, and of the regularisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same, classes_of, gradients, normal
from test_laws import COSINE, COUNTS, LOGITS, LOSSES, MARGINS, OFFSET, TARGET, VECTORS, input_of, kind_of, made
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, losses
from lt_kernels.functional import DBM, MixedTarget, SphereFace

pytestmark = pytest.mark.usefixtures("kernels")

ROWS, CLASSES, LAM = 14, 9, 0.3
ORDER = torch.randperm(ROWS, generator=torch.Generator().manual_seed(181))
SECOND = TARGET[ORDER]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"LADELoss", "ARBLoss"}))
def test_mixed_target_of_every_loss(name: str) -> None:
    """lam L(first) + (1 - lam) L(second), each with its own margin, hardness and mean of weights."""
    loss = made(name)
    assert_same(
        lambda z: loss(z, MixedTarget(TARGET, SECOND, LAM)),
        lambda z: LAM * loss(z, TARGET) + (1 - LAM) * loss(z, SECOND),
        {"z": input_of(name)},
    )


def test_mixed_target_with_batch_counts() -> None:
    """The counts are those of the unmixed labels, so both partners are there."""
    loss = losses.ARBLoss(counts="batch")
    counts = TARGET.bincount(minlength=CLASSES).double()

    def exact(z: Tensor) -> Tensor:
        logarithm = (z + counts.log()).log_softmax(1)
        own = [-logarithm.gather(1, y[:, None])[:, 0].mean() for y in (TARGET, SECOND)]
        return LAM * own[0] + (1 - LAM) * own[1]

    assert_same(lambda z: loss(z, MixedTarget(TARGET, SECOND, LAM)), exact, {"z": LOGITS})


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("margin", MARGINS, ids=kind_of)
def test_mixed_target_from_features(margin: object, reduction: str) -> None:
    call: Any = functional.cosine_margin_cross_entropy
    options = {"margin": margin, "scale": 6.0, "offset": OFFSET, "focal_gamma": 1.0, "reduction": reduction}
    mixed = MixedTarget(TARGET, SECOND, LAM)
    assert_same(
        lambda **leaves: call(target=mixed, **leaves, **options),
        lambda **leaves: (
            LAM * call(target=TARGET, **leaves, **options) + (1 - LAM) * call(target=SECOND, **leaves, **options)
        ),
        VECTORS,
    )


def test_mixed_target_from_logits_of_a_linear_layer() -> None:
    call: Any = functional.linear_cross_entropy
    options = {"weight": COUNTS / 100, "label_smoothing": 0.2, "offset": OFFSET}
    mixed = MixedTarget(TARGET, SECOND, LAM)
    assert_same(
        lambda **leaves: call(target=mixed, **leaves, **options),
        lambda **leaves: (
            LAM * call(target=TARGET, **leaves, **options) + (1 - LAM) * call(target=SECOND, **leaves, **options)
        ),
        VECTORS,
    )


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_mixed_target_at_its_ends(lam: float) -> None:
    chosen = TARGET if lam else SECOND
    call = functional.offset_cross_entropy
    assert_same(lambda z: call(z, MixedTarget(TARGET, SECOND, lam)), lambda z: call(z, chosen), {"z": LOGITS})


def test_linear_is_offset_of_the_product() -> None:
    call, options = functional.linear_cross_entropy, {"offset": OFFSET, "focal_gamma": 1.5, "label_smoothing": 0.1}
    assert_same(
        lambda input, linear_weight: call(input, linear_weight, TARGET, **options),
        lambda input, linear_weight: functional.offset_cross_entropy(input @ linear_weight.T, TARGET, **options),
        VECTORS,
    )


@pytest.mark.parametrize("margin", [margin for margin in MARGINS if not isinstance(margin, SphereFace)], ids=kind_of)
def test_cosines_do_not_know_lengths(margin: object) -> None:
    """Lengths of features and of class weights change nothing, and each gradient is orthogonal to its vector."""
    call = functional.cosine_margin_cross_entropy
    found = gradients(lambda **leaves: call(target=TARGET, margin=margin, scale=6.0, **leaves), VECTORS)
    longer = {key: leaf * (1 + torch.arange(len(leaf)).double())[:, None] for key, leaf in VECTORS.items()}
    assert_close(call(target=TARGET, margin=margin, scale=6.0, **longer), found["value"])
    for key, leaf in VECTORS.items():
        assert_close((found[key] * leaf).sum(1), torch.zeros(len(leaf), dtype=torch.float64))


def test_larger_margins_cost_more() -> None:
    call = functional.cosine_margin_cross_entropy
    for low, high in (
        (functional.CosFace(0.1), functional.CosFace(0.2)),
        (functional.LDAM(COUNTS, 0.1), functional.LDAM(COUNTS, 0.2)),
        (functional.DBM(COUNTS, 0.05, guard=True), functional.DBM(COUNTS, 0.1, guard=True)),
    ):
        less, more = (call(**VECTORS, target=TARGET, margin=margin, reduction="none") for margin in (low, high))
        assert (more > less).all()


def test_instance_margin_only_concerns_hard_samples() -> None:
    call = functional.cosine_margin_cross_entropy
    cosine = torch.nn.functional.normalize(VECTORS["input"]) @ torch.nn.functional.normalize(VECTORS["linear_weight"]).T
    hard = cosine.argmax(1) != TARGET
    assert 0 < hard.sum() < ROWS
    plain, harder = (
        call(**VECTORS, target=TARGET, margin=DBM(COUNTS, 0.3, instance=instance), scale=6.0, reduction="none")
        for instance in (0.0, 1.0)
    )
    assert torch.equal(plain[~hard], harder[~hard])
    assert (harder[hard] > plain[hard]).all()


def test_repulsion_is_blind_to_lengths_and_order() -> None:
    weight = normal(21, 4, seed=182)
    length = 0.1 + normal(21, 1, seed=183).abs()
    order = torch.randperm(21, generator=torch.Generator().manual_seed(184))
    call = functional.logit_weight_repulsion
    rows = call(weight, reduction="none")
    assert_close(call(weight * length, reduction="none"), rows)
    assert_close(call(weight[order], reduction="none"), rows[order])
    assert_close(call(weight), rows.sum())
    assert_close(call(weight, reduction="mean"), rows.mean())


def test_repulsion_is_least_where_nothing_is_alike() -> None:
    """Orthogonal weights: each row is log(e + C - 1) - 1; a step against the gradient lowers the sum."""
    call, size = functional.logit_weight_repulsion, 8
    floor = size * (torch.tensor(size - 1.0, dtype=torch.float64) + torch.e).log() - size
    assert_close(call(torch.eye(size, dtype=torch.float64)), floor)
    weight = normal(size, 3, seed=185)
    found = gradients(lambda w: call(w, threshold=-1.0), {"w": weight})
    assert call(weight - 1e-3 * found["w"], threshold=-1.0) < found["value"]


def test_lade_is_scaled_by_alpha() -> None:
    one, two, none = (losses.LADELoss(COUNTS, alpha=alpha).double() for alpha in (0.1, 0.2, 0.0))
    z = LOGITS
    assert_close(two(z, TARGET) - none(z, TARGET), 2 * (one(z, TARGET) - none(z, TARGET)))


def test_group_of_one_slab_or_many() -> None:
    """Rows do not see each other: a batch equals its rows one by one."""
    for name in sorted(set(LOSSES) - {"LADELoss", "ARBLoss", "ClassBalancedLoss"}):
        loss, z = made(name), input_of(name)
        alone = torch.stack([loss(z[i : i + 1], TARGET[i : i + 1]) for i in range(ROWS)])
        assert_close(loss(z, TARGET), alone.mean(), name=name)


def test_set_weight_is_the_weight_of_the_constructor() -> None:
    """What a deferred reweighting sets equals the loss that was made with it, and None takes it back."""
    weight = normal(CLASSES, seed=186).abs()
    z, target = input_of("LDAMLoss"), classes_of(ROWS, CLASSES, 187)
    given, late = losses.LDAMLoss(COUNTS, weight=weight).double(), losses.LDAMLoss(COUNTS).double()
    before = late(z, target)
    late.set_weight(weight)
    assert_close(late(z, target), given(z, target))
    late.set_weight(None)
    assert torch.equal(late(z, target), before)


def test_state_dict_round_trip_and_dtype() -> None:
    for name in LOSSES:
        loss, other = made(name), made(name)
        other.load_state_dict(loss.state_dict())
        z = input_of(name)
        assert torch.equal(loss(z, TARGET), other(z, TARGET))
        assert loss(z.float(), TARGET).dtype == torch.float32
        assert (name in COSINE) == (loss.input_kind == "cosine")
