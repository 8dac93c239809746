"""The named losses that are settings of `Loss`, one class each."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from lt_kernels import priors
from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast, product_type
from lt_kernels.core.terms import Reduction
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace
from lt_kernels.losses.base import Loss


class CrossEntropyLoss(Loss):
    """-log softmax(z)_y, as `torch.nn.CrossEntropyLoss`, with kernels and heads of ours."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        given: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, **given)


class LogitAdjustmentLoss(Loss):
    """-log softmax(z + tau log p)_y with p the class prior (Menon et al., 2021).

    Args:
        class_counts: training samples of each class [C]; a class with 0 is not there, and an error as a target.
        tau: strength, at least 0.
    """

    def __init__(self, class_counts: Any, tau: float = 1.0, **options: Any) -> None:
        super().__init__(**self._with(options, offset=priors.log_prior(class_counts, tau)))


class BalancedSoftmaxLoss(LogitAdjustmentLoss):
    """-log softmax(z + log n)_y (Ren et al., 2020).

    Args:
        class_counts: training samples of each class [C].
    """

    def __init__(self, class_counts: Any, **options: Any) -> None:
        super().__init__(class_counts, **self._with(options, tau=1.0))


class FocalLoss(Loss):
    """w_y (1 - p_y)^gamma (-log p_y) (Lin et al., 2017), averaged over the rows.

    Args:
        gamma: at least 0; 0 is cross-entropy.
        weight: [C] or None.
    """

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, **options: Any) -> None:
        checks.number("gamma", gamma, 0.0)
        super().__init__(weight=weight, **self._with(options, focal_gamma=gamma, average="batch"))


class ClassBalancedLoss(Loss):
    """(1 - beta) / (1 - beta^n_y) times cross-entropy, or focal loss with gamma > 0 (Cui et al., 2019).

    Args:
        class_counts: training samples of each class [C], all above 0.
        beta: in [0, 1).
        gamma: focal exponent.
        average: "weighted" divides by the sum of the rows' weights, "batch" by the number of rows (the paper).
        normalize: scale the weights to sum to C; with "weighted" that cancels.
    """

    def __init__(
        self,
        class_counts: Any,
        beta: float = 0.9999,
        gamma: float = 0.0,
        *,
        average: Literal["weighted", "batch"] = "weighted",
        normalize: bool = True,
        **options: Any,
    ) -> None:
        checks.number("gamma", gamma, 0.0)
        weight = priors.class_balanced_weight(class_counts, beta, normalize)
        super().__init__(average=average, **self._with(options, weight=weight, focal_gamma=gamma))


class LDAMLoss(Loss):
    """Softmax over scale (cos - m_y) for the target, scale cos else (Cao et al., 2019).

    m_c = max_margin (n_min / n_c)^(1/4).

    Args:
        class_counts: training samples of each class [C], all above 0.
        max_margin: the rarest class's margin; the authors' value is 0.5, and 0.3 for iNaturalist.
        scale: above 0.
        weight: [C]; `schedules.DeferredReweighting` sets it for LDAM-DRW.
    """

    input_kind: ClassVar[str] = "cosine"

    def __init__(
        self,
        class_counts: Any,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        margin = LDAM(class_counts, max_margin)
        super().__init__(scale=scale, weight=weight, **self._with(options, margin=margin))


class DBMLoss(Loss):
    """Softmax over scale cos(theta + m_i) for the target, whose margin grows with rarity and difficulty (DBM, 2025).

    m_i = m_c (1 + instance h_i (1 - cos)/2), m_c = max_margin (n_min / n_c)^tau, h_i = 1 where the raw argmax is wrong,
    or with applies="all" everywhere.

    Args:
        class_counts: training samples of each class [C], all above 0.
        max_margin: K, radians. tau: decay with the count. instance: lambda. scale: 32 (CIFAR) or 30 in the paper.
        base: "ce"; "bs" adds log p to the logits; "cb" adds class-balanced weights (with `beta`).
        guard: continue beyond theta + m = pi as ArcFace does; False is the published form.
        applies: the samples whose margin grows with their distance, "hard" or "all".
        weight: [C], with base "ce" or "bs"; with "cb" the loss has its own.
    """

    input_kind: ClassVar[str] = "cosine"

    def __init__(
        self,
        class_counts: Any,
        max_margin: float = 0.1,
        tau: float = 1.0,
        instance: float = 1.0,
        scale: float = 30.0,
        *,
        base: Literal["ce", "bs", "cb"] = "ce",
        beta: float = 0.9999,
        guard: bool = False,
        applies: Literal["hard", "all"] = "hard",
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        checks.choice("base", base, ("ce", "bs", "cb"))
        options = self._with(options, margin=DBM(class_counts, max_margin, tau, instance, guard, applies))
        if base == "bs":
            options = self._with(options, offset=priors.log_prior(class_counts))
        if base == "cb" and weight is not None:
            raise ValueError(f"weight must be None with base='cb', which has its own, got {checks.shown(weight)}")
        weight = priors.class_balanced_weight(class_counts, beta) if base == "cb" else weight
        super().__init__(scale=scale, weight=weight, **options)


class CosFaceLoss(Loss):
    """Softmax over scale (cos - margin) for the target, scale cos else (Wang et al., 2018)."""

    input_kind: ClassVar[str] = "cosine"

    def __init__(self, margin: float = 0.35, scale: float = 64.0, **options: Any) -> None:
        super().__init__(margin=CosFace(margin), scale=scale, **options)


class ArcFaceLoss(Loss):
    """Softmax over scale cos(theta + margin) for the target, scale cos else (Deng et al., 2019); margin in radians."""

    input_kind: ClassVar[str] = "cosine"

    def __init__(self, margin: float = 0.5, scale: float = 64.0, **options: Any) -> None:
        super().__init__(margin=ArcFace(margin), scale=scale, **options)


class SphereFaceLoss(Loss):
    """Softmax over scale |x| (lam cos + psi) / (1 + lam) for the target, scale |x| cos else (Liu et al., 2017).

    Given cosines, `norms` [N] are the features' norms (1 without them); a `CosineHead` passes features and needs none.

    Args:
        margin: the whole number by which psi multiplies the angle. scale: above 0.
        annealing: lam, at least 0; `set_annealing` changes it between steps, as `schedules.SphereFaceAnnealing` says.
    """

    input_kind: ClassVar[str] = "cosine"

    def __init__(self, margin: int = 4, scale: float = 1.0, *, annealing: float = 0.0, **options: Any) -> None:
        super().__init__(margin=SphereFace(margin), scale=scale, **options)
        annealing = checks.number("annealing", annealing, 0.0)
        self.register_table("class_margin", checks.by_class("annealing", [annealing]), persistent=False)

    @property
    def annealing(self) -> float:
        """lam as it is now; to read it waits for the device that the loss is on."""
        return float(self._buffers["class_margin"])  # type: ignore[arg-type]

    def set_annealing(self, annealing: float) -> None:
        """Set lam, as a schedule does between steps; it is no part of the state, and nothing is compiled again."""
        self._buffers["class_margin"].fill_(checks.number("annealing", annealing, 0.0))  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        """The settings, with lam as it is now: the margin itself was made without."""
        return super().extra_repr().replace("annealing=0.0", f"annealing={self.annealing}")

    def forward(
        self,
        input: Tensor,
        target: Tensor | MixedTarget,
        norms: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of cosines [N, C] of features with these norms [N]."""
        if norms is None:
            return super().forward(input, target, sample_weight=sample_weight)
        checks.floating("input", input, dtensor=True)
        checks.same_device("norms", checks.floating("norms", norms, dtensor=True), input)
        if input.ndim != 2:
            raise ValueError(f"input must be [N, C] where norms are given, got {list(input.shape)}")
        if norms.shape != input.shape[:1]:
            raise ValueError(
                f"norms must have one number for each of {list(input.shape[:1])} rows, got {list(norms.shape)}"
            )
        length = norms.to(accumulate_type(input.dtype))
        logits = input * length[:, None].to(product_type(input))
        found = self.evaluate(logits, target, length, sample_weight=sample_weight)
        return found if autocast(input) else found.to(input.dtype)


class LabelAwareSmoothingLoss(Loss):
    """(1 - e_y) CE - e_y / C sum_c log p_c with a smoothing e that grows with the class count (Zhong et al., 2021).

    Args:
        class_counts: training samples of each class [C].
        head, tail, shape, power: of `priors.label_aware_smoothing`.
        spread: "all" gives e / C to every class (the published code), "others" e / (C - 1) to the non-targets.
    """

    def __init__(
        self,
        class_counts: Any,
        head: float = 0.3,
        tail: float = 0.0,
        shape: Literal["concave", "linear", "convex", "exp"] = "concave",
        power: float = 1.0,
        *,
        spread: Literal["all", "others"] = "all",
        **options: Any,
    ) -> None:
        checks.choice("spread", spread, ("all", "others"))
        smoothing = priors.label_aware_smoothing(class_counts, head, tail, shape, power)
        super().__init__(**self._with(options, label_smoothing=priors.spread_smoothing(smoothing, spread)))
