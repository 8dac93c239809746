"""The sources of a loss: logits, or features and class weights; and which of the two ways each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.accuracy import Accuracy
from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import autocast
from lt_kernels.core.targets import divisor_of
from lt_kernels.core.terms import CODES, Phi, Reduce, Terms
from lt_kernels.margins import Margin
from lt_kernels.ops import budget, calling, direct, directions, groups, linear, margins, rows
from lt_kernels.ops.ranks import sampling, shards
from lt_kernels.ops.ranks.reduction import Batch


class Logits(NamedTuple):
    """Logits [N, C], or cosines for a margin; `norm` [N] are the features' norms where phi reads them.

    With `ranks` the rows are this rank's of a batch that is dealt over ranks. A `softcap` other than 0 makes its logits
    softcap tanh(values / softcap).
    """

    values: Tensor
    norm: Tensor | None = None
    ranks: Batch | None = None
    softcap: float = 0.0

    @property
    def tensor(self) -> Tensor:
        return self.values

    @property
    def classes(self) -> int:
        return self.values.shape[1]

    def logits(self) -> Tensor:
        """The values, capped; capped ones are in the dtype of the arithmetic."""
        return rows.Capped.apply(self.values, self.softcap) if self.softcap else self.values

    def without(self, rows: Tensor) -> Logits:
        """The same with 0 in the place of some rows [N], which then have no gradient."""
        return self._replace(values=self.values.masked_fill(rows[:, None], 0.0))

    def statistics(self, target: Tensor, terms: Terms) -> tuple[Tensor, ...]:
        """(rest, own [N, K], own_offset [N, K], mean, rival, top, shares) for K targets a row; the others [N]."""
        return rows.statistics(self.logits(), target, terms)

    def loss(self, target: Tensor, terms: Terms) -> Tensor:
        """The loss of each row [N] for one target a row."""
        if self.norm is None:
            return rows.loss(self.logits(), target, terms)
        return judged(self, target, terms)

    def reduced(
        self, target: Tensor, terms: Terms, reduction: str, average: str, accuracy: Accuracy | None = None
    ) -> Tensor | None:
        """The reduced loss in one call; None where phi reads norms, or for an accuracy."""
        if self.norm is not None or accuracy is not None:
            return None
        loss = direct.rows_loss if calling.direct(self.values) else rows.loss
        return loss(self.logits(), target, terms, code_of(reduction, average))


class Features(NamedTuple):
    """Features [N, d] and class weights [C, d]: all, this rank's shard of the classes or of the rows, or a sample."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    normalize: int
    norm: Tensor | None
    shard: shards.Shard | None = None
    chosen: sampling.Chosen | None = None
    ranks: Batch | None = None
    softcap: float = 0.0

    @property
    def tensor(self) -> Tensor:
        return self.input

    @property
    def classes(self) -> int:
        return self.weight.shape[0] if self.shard is None else self.shard.classes

    def without(self, rows: Tensor) -> Features:
        """The same with 0 in the place of some rows [N], which then have no gradient."""
        return self._replace(input=self.input.masked_fill(rows[:, None], 0.0))

    def statistics(self, target: Tensor, terms: Terms) -> tuple[Tensor, ...]:
        """(rest, own [N, K], own_offset [N, K], mean, rival, top, shares) for K targets a row; the others [N]."""
        if self.shard is None:
            problem = (*self.in_range(), self.bias, target, terms, self.normalize)
            statistics = linear.statistics if self.chosen is None else self.chosen.statistics
            return statistics(*problem, softcap=self.softcap)
        problem = (self.input, self.weight, self.bias, target, terms, self.normalize)
        return self.shard.statistics(*problem, self.chosen, self.softcap)

    def loss(self, target: Tensor, terms: Terms) -> Tensor:
        """The loss of each row [N] for one target a row."""
        return judged(self, target, terms)

    def reduced(
        self, target: Tensor, terms: Terms, reduction: str, average: str, accuracy: Accuracy | None = None
    ) -> Tensor | None:
        """The reduced loss with its gradients: of all logits at once where they fit, else by groups of rows.

        An accuracy is counted with groups on a CPU alone.
        """
        if self.shard is not None or self.norm is not None or self.chosen is not None:
            return None
        if accuracy is None and not self.softcap and self._whole(terms, reduction):
            problem = (self.input, self.weight, self.bias, target, terms, self.normalize)
            return direct.features_loss(*problem, code_of(reduction, average))
        uncounted = accuracy is not None and calling.on_gpu(self.input)
        if uncounted or not groups.serve(self.input, self.weight, terms, reduction, self.softcap):
            return None
        weight = terms.weight if average == "weighted" else None
        divisor = None if reduction == "sum" else divisor_of(target, weight, terms.ignore_index, terms.sample_weight)
        given = (*self.in_range(), self.bias, target, terms, self.normalize)
        return groups.GroupedLoss.apply(*given, divisor, accuracy, self.softcap)

    def in_range(self) -> tuple[Tensor, Tensor]:
        """Features and class weights; of cosines on the direct way those whose norms do not overflow."""
        if self.normalize != Normalize.BOTH or not calling.direct(self.input):
            return self.input, self.weight
        weight = self.weight if self.chosen is not None else directions.in_range(self.weight)
        return directions.in_range(self.input), weight

    def _whole(self, terms: Terms, reduction: str) -> bool:
        """Whether the loss takes the direct way: the memory budget holds all logits and their gradient.

        float16, whose gradients may underflow, and on a CPU the cosines of bfloat16 take the operators; so do, on a
        GPU, losses that are not reduced or have no gradient, which need no array of logits there.
        """
        input, weight, bias, normalize = self.input, self.weight, self.bias, self.normalize
        learned, on_gpu = terms.offset is not None and terms.offset.requires_grad, calling.on_gpu(input)
        exact = input.dtype is torch.float32 or input.dtype is torch.float64
        served = exact or (input.dtype is torch.bfloat16 and (on_gpu or normalize == Normalize.NOTHING))
        return (
            0 < input.shape[0] * weight.shape[0] * direct.bytes_of(input) <= budget.current_budget()
            and served
            and (input.dtype is weight.dtype or (on_gpu and weight.dtype is torch.float32))
            and not (learned and normalize != Normalize.NOTHING)
            and not (on_gpu and (reduction == "none" or not torch.is_grad_enabled()))
            and calling.direct(input)
            and calling.plain(weight)
            and (bias is None or calling.plain(bias))
        )


Source = Logits | Features


def capped(source: Source, softcap: float | None) -> Source:
    """The source with softcap tanh(z / softcap) in the place of each logit z; None leaves them."""
    return source if softcap is None else source._replace(softcap=checks.number("softcap", softcap, above=0.0))


def features(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalize: int,
    margin: Margin | None,
    group: Any,
    draw: Callable[[Tensor, int], sampling.Chosen] | None = None,
    ranks: Batch | None = None,
) -> Features:
    """The source for features, which are cast as autocast asks (float32 class weights are not).

    `group` is the process group over which the classes are sharded, or the shard itself where it is known. `draw`
    chooses among this rank's class weights, whose first class it is told.
    """
    sphere = margin is not None and margin.kind == Phi.SPHERE
    direction = normalize == Normalize.BOTH and not sphere
    raw = direction and group is None and calling.direct(input)  # the direct way looks at each norm once
    if autocast(input) and input.dtype == torch.float32:
        kind = torch.get_autocast_dtype(input.device.type)
        input = directions.narrowed(input, kind) if direction else input.to(kind)
    elif direction and not raw:
        input = directions.in_range(input)
    kind = torch.float64 if input.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(input, dim=1, dtype=kind) if sphere else None
    shard = group if group is None or isinstance(group, shards.Shard) else shards.shard_of(weight, group)
    normalize = Normalize.CLASSES if sphere else normalize
    if draw is not None:
        chosen = draw(weight, 0 if shard is None else shard.start)
        if shard is not None or chosen.rows is not None:
            return Features(input, weight, bias, normalize, norm, shard, chosen, ranks)
    weight = weight if raw or normalize == Normalize.NOTHING else directions.in_range(weight)
    return Features(input, weight, bias, normalize, norm, shard, None, ranks)


def judged(source: Source, target: Tensor, terms: Terms, accuracy: Accuracy | None = None) -> Tensor:
    """The loss of each row [N] from its statistics; `accuracy` counts the rows whose own logit no rival exceeds."""
    rest, own, own_offset, mean, rival, top, shares = source.statistics(target[:, None], terms)
    terms = summed(source, terms, shares, target[:, None])
    if accuracy is not None:
        accuracy.compare(own[:, 0], rival, target != terms.ignore_index)
    return margins.loss(rest, top, own[:, 0], rival, target, own_offset[:, 0], mean, terms, source.norm)[0]


def summed(source: Source, terms: Terms, shares: Tensor, target: Tensor) -> Terms:
    """The terms with the sum of label smoothing's shares over the classes of the source, for targets [N, K]."""
    if isinstance(source, Logits) or source.chosen is None:
        return terms
    return sampling.with_total(terms, shares, target)


def code_of(reduction: str, average: str) -> int:
    """The operators' number for a reduction; a mean divides by the rows' weights, or by the number of rows."""
    return int(Reduce.MEAN) if reduction == "mean" and average == "batch" else CODES[reduction]
