"""The public functions that regularise: logit-weight repulsion and LADE's regulariser (docs/math.md)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import autocast
from lt_kernels.core.terms import Reduction
from lt_kernels.ops import gram
from lt_kernels.ops.ranks.columns import lade_of_ranks
from lt_kernels.ops.ranks.dealing import ranks_of
from lt_kernels.ops.ranks.gram import repulsion


def logit_weight_repulsion(
    linear_weight: Tensor,
    *,
    threshold: float = 0.4,
    project: bool | Literal["raw"] = True,
    reduction: Reduction = "sum",
    group: Any = None,
) -> Tensor:
    """R_i = log sum_j exp(1[cos_ij > threshold] s_ij) - 1[threshold < 1] s_ii, s_ij the cosine of w_i and w_j.

    Class weights that are closer than the threshold push each other apart. The C x C cosines are never held.

    Args:
        linear_weight: a row for each class [C, d]; a row of norm 0 has cosine 0 with all others. A DTensor must be
            `Replicate()`; reduced, the result is a plain number for it too.
        threshold: a cosine; 1 or more switches the repulsion off (R_i = log C, gradient 0).
        project: differentiate through the normalisation, which makes the gradient tangent to each w_i; False holds the
            norms constant. "raw" has products s_ij = w_i.w_j, active where the cosine is above the threshold, as in the
            other forms; the diagonal is then s_ii = |w_i|^2, active if the threshold is below 1, and has a gradient.
            |w_i|^2 must be finite in the dtype of the arithmetic.
        reduction: "sum" (as published), "mean", or "none" for [C].
        group: as for `linear_cross_entropy`; a DTensor's mesh says it. Each rank computes its rows against all, and has
            their gradient; "none" is for these rows.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    given = (linear_weight, threshold, project, reduction)
    if group is not None or checks.is_dtensor(linear_weight):
        found = repulsion(group, *given)
        return found if autocast(linear_weight) else found.to(linear_weight.dtype)
    found = gram.repulsion(linear_weight, *gram.checked(*given))
    return reduced(found, reduction, linear_weight)


def reduced(value: Tensor, reduction: Reduction, like: Tensor) -> Tensor:
    """R [C] reduced; float32 under autocast, else in the dtype of the class weights."""
    value = value if reduction == "none" else value.sum() if reduction == "sum" else value.mean()
    return value if autocast(like) else value.to(like.dtype)


def lade_regularizer(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    *,
    lam: float = 0.1,
    importance: Literal["class", "sample"] = "class",
    classes: Literal["all", "present"] = "all",
    batch_group: Any = None,
) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2), LADE's regulariser (Hong et al., 2021).

    A_c is the mean logit of class c over its own rows (0 if it has none), B_c = logsumexp_i (z_ic + log v_ic) - log N
    with importance weights v, p the class prior.

    Args:
        logits: [N, C], N at least 1.
        target: class indices [N].
        class_counts: training samples of each class [C].
        lam: at least 0.
        importance: v_ic = (1/C) / p of the logit's class c ("class", the published code) or of the row's own class
            ("sample", the published formula).
        classes: sum over "all" classes (the code) or those "present" in the batch (the formula).
        batch_group: the ranks over which the batch is dealt: a process group, "all" for all ranks of torch.distributed
            if it is initialised, or None for this process alone. N is then the rows of all, and a rank may have none;
            the gradient of a rank's logits is that of the value times the number of ranks (docs/distributed.md).

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError, IndexError: naming the argument.
    """
    lam = checks.number("lam", lam, 0.0)
    checks.choice("importance", importance, ("class", "sample"))
    checks.choice("classes", classes, ("all", "present"))
    rows = (logits, target, checks.counts(class_counts), lam, importance, classes)
    return lade_of_ranks(ranks_of(batch_group), *rows)
