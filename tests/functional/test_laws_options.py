"""Laws of what every named loss takes: a z-loss and a cap of its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same, normal
from test_laws import COSINE, COUNTS, LOGITS, LOSSES, TARGET, VECTORS, input_of, made
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, losses, memory_budget, posthoc
from lt_kernels.functional import MixedTarget, SphereFace
from lt_kernels.heads import BalancedContrastiveHead, CosineHead, LinearHead

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True

CLASSES, FEATURES = VECTORS["linear_weight"].shape
Z_LOSS, CAP = 0.3, 1.5
OF_LOGITS = sorted(set(LOSSES) - COSINE)
WIDE = normal(*LOGITS.shape, seed=191, spread=6.0)  # many of them beyond the cap
SPECIAL = ("LADELoss", "ARBLoss")


def capped(logits: Tensor) -> Tensor:
    """As a model of plain torch has it."""
    return CAP * torch.tanh(logits / CAP)


def whole(loss: Any, name: str, z: Tensor) -> Tensor:
    """The log-sum-exp of each row, the target's margin included.

    Losses with a margin have no focal factor and no smoothing here, so that exp(-loss) is the target's share.
    """
    offset = TARGET.bincount(minlength=CLASSES).double().log() if name == "ARBLoss" else loss.offset
    u = loss.scale * z + (0.0 if offset is None else offset)
    if loss.margin is None:
        return u.logsumexp(1)
    rest = u.scatter(1, TARGET[:, None], -torch.inf).logsumexp(1)
    weight = 1.0 if loss.weight is None else loss.weight[TARGET]
    return rest - torch.log1p(-torch.exp(-made(name, reduction="none")(z, TARGET) / weight))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_z_loss_is_added(name: str, reduction: str) -> None:
    """z_loss times the squared log-sum-exp, whatever the class's weight; the mean divides as without it."""
    plain, ours = made(name, reduction=reduction), made(name, reduction=reduction, z_loss=Z_LOSS)
    weighted = plain.weight is not None and plain.average == "weighted"
    divisor = 1.0 if reduction == "sum" else plain.weight[TARGET].sum() if weighted else len(TARGET)
    assert_same(
        lambda z: ours(z, TARGET),
        lambda z: plain(z, TARGET) + Z_LOSS * whole(plain, name, z).square().sum() / divisor,
        {"z": input_of(name)},
    )


@pytest.mark.parametrize("z_loss", [0.0, Z_LOSS])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_softcap_is_that_of_the_logits(name: str, z_loss: float) -> None:
    ours, plain = made(name, softcap=CAP, z_loss=z_loss), made(name, z_loss=z_loss)
    assert_same(lambda z: ours(z, TARGET), lambda z: plain(capped(z), TARGET), {"z": WIDE})


@pytest.mark.parametrize("name", sorted(set(OF_LOGITS) - set(SPECIAL)))
def test_a_softcap_with_two_targets(name: str) -> None:
    ours, plain = made(name, softcap=CAP, z_loss=Z_LOSS), made(name, z_loss=Z_LOSS)
    target = MixedTarget(TARGET, TARGET.flip(0), 0.3)
    assert_same(lambda z: ours(z, target), lambda z: plain(capped(z), target), {"z": WIDE})


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in COSINE])
@pytest.mark.parametrize("bytes", [2**20, 8 * 60])
def test_a_head_is_the_loss_of_its_logits(name: str, bytes: int) -> None:
    """Also of more logits than the memory budget holds; prediction is capped as training is."""
    options = {"z_loss": Z_LOSS, "softcap": CAP}
    head = LinearHead(FEATURES, CLASSES, made(name, **options)).double()
    loss = made(name, z_loss=Z_LOSS)
    names = ("weight", "bias")

    def ours(input: Tensor, **weights: Tensor) -> Tensor:
        return torch.func.functional_call(head, weights, (input, TARGET))

    leaves = {"input": VECTORS["input"], "weight": 3.0 * VECTORS["linear_weight"], "bias": normal(CLASSES, seed=192)}
    with memory_budget(bytes):
        assert_same(ours, lambda input, weight, bias: loss(capped(input @ weight.T + bias), TARGET), leaves)
    exact = capped(VECTORS["input"] @ head.weight.T + head.bias)
    for found in (head(VECTORS["input"]), head.scaled(VECTORS["input"]), posthoc.LearnableWeightScaling(head)):
        assert_close(found(VECTORS["input"]) if callable(found) else found, exact)
    assert dict(head.named_parameters()).keys() == set(names)


@pytest.mark.parametrize("name", sorted(COSINE))
def test_a_cosine_head_has_a_z_loss(name: str) -> None:
    """That of the function with the same settings, which with SphereFace has the features' norms."""
    loss = made(name, z_loss=Z_LOSS)
    head = CosineHead(FEATURES, CLASSES, loss).double()
    margin = SphereFace(loss.margin.margin, loss.annealing) if name == "SphereFaceLoss" else loss.margin
    settings = {"margin": margin, "scale": loss.scale, "weight": loss.weight, "offset": loss.offset}
    assert_same(
        lambda input, linear_weight: torch.func.functional_call(head, {"weight": linear_weight}, (input, TARGET)),
        lambda input, linear_weight: functional.cosine_margin_cross_entropy(
            input, linear_weight, TARGET, z_loss=Z_LOSS, **settings
        ),
        VECTORS,
    )


def test_the_function_with_the_same_options() -> None:
    """Of logits, and of features."""
    options: dict[str, Any] = {"z_loss": 1e-4, "softcap": 30.0}
    loss = losses.BalancedSoftmaxLoss(COUNTS, **options)
    wide, offset = 20 * LOGITS, (COUNTS / COUNTS.sum()).log()  # a constant in it changes the z-loss
    assert_close(loss(wide, TARGET), functional.offset_cross_entropy(wide, TARGET, offset=offset, **options))
    head = LinearHead(FEATURES, CLASSES, loss).double()
    given = {"linear_bias": head.bias, "offset": offset, **options}
    exact = functional.linear_cross_entropy(VECTORS["input"], head.weight, TARGET, **given)
    assert_close(head(VECTORS["input"], TARGET), exact)


def test_estimated_offsets_come_after_the_cap() -> None:
    """The z-loss is that of the logits without the offsets."""
    loss = losses.EstimatedOffsetLoss(CLASSES, FEATURES, softcap=CAP, z_loss=Z_LOSS, centers="autograd").double()
    with torch.no_grad():
        loss.center_loss.centers.copy_(normal(CLASSES, FEATURES, seed=193))
    head = LinearHead(FEATURES, CLASSES, loss, bias=False).double()
    offsets = loss.offsets(head.weight)
    assert_close(head(VECTORS["input"]), capped(VECTORS["input"] @ head.weight.T) + offsets)
    plain = losses.EstimatedOffsetLoss(CLASSES, FEATURES, centers="autograd").double()
    plain.load_state_dict(loss.state_dict())
    u = capped(VECTORS["input"] @ head.weight.T)
    given = {"features": VECTORS["input"], "linear_weight": head.weight}
    exact = plain(u, TARGET, **given) + Z_LOSS * (u + offsets).logsumexp(1).square().mean()
    assert_close(head(VECTORS["input"], TARGET), exact)
    assert_close(loss(VECTORS["input"] @ head.weight.T, TARGET, **given), exact)


def test_a_changed_setting_counts_at_the_next_call() -> None:
    """The terms that a loss keeps are made again."""
    loss = losses.CrossEntropyLoss()
    for options in ({"z_loss": 0.0}, {"z_loss": Z_LOSS}, {"z_loss": 0.1, "softcap": CAP}, {"softcap": None}):
        for name, value in options.items():
            setattr(loss, name, value)
        now: dict[str, Any] = {"z_loss": loss.z_loss, "softcap": loss.softcap}
        assert_close(loss(WIDE, TARGET), functional.offset_cross_entropy(WIDE, TARGET, **now))


@pytest.mark.parametrize("name", sorted(COSINE))
def test_cosines_have_no_softcap(name: str) -> None:
    with pytest.raises(ValueError, match=f"softcap must be None with {LOSSES[name][0]}.*got 30.0"):
        made(name, softcap=30.0)


def test_heads_of_cosines_take_no_softcap() -> None:
    loss = losses.BalancedSoftmaxLoss(COUNTS, softcap=30.0)
    with pytest.raises(ValueError, match=r"loss must have softcap=None .*cosines, got 30.0"):
        CosineHead(FEATURES, CLASSES, loss)
    with pytest.raises(ValueError, match=r"loss must have softcap=None .*cosines, got 30.0"):
        loss.from_features(VECTORS["input"], VECTORS["linear_weight"], TARGET, cosine=True)
    with pytest.raises(ValueError, match=r"base must have softcap=None.*got 30.0"):
        BalancedContrastiveHead(FEATURES, CLASSES, losses.BalancedContrastiveLoss(loss))


@pytest.mark.parametrize(
    ("option", "bad"), [("z_loss", -1.0), ("z_loss", torch.nan), ("softcap", 0.0), ("softcap", -2.0)]
)
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "ARBLoss", "LADELoss"])
def test_bad_options(name: str, option: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must .*got {bad}"):
        made(name, **{option: bad})
