"""Sizes whose elements 32-bit indices cannot count: ours on the whole, float64 and eager torch on a sample of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.report import Check
from lt_kernels import functional
from tests.tolerances import TOLERANCE, error

# (rows, classes, features) on a GPU, and what the interpreter can afford.
SIZES = {
    "rows": ((20_000, 128_256, 0), (5, 130, 0)),
    "linear": ((64, 1_100_000, 2_048), (4, 130, 24)),
    "cosine": ((64, 1_100_000, 2_048), (4, 130, 24)),
    "lade": ((20_000, 128_256, 0), (9, 17, 0)),
    "repulsion": ((0, 100_000, 512), (0, 40, 16)),
}
CHUNK = 50_000  # classes whose float64 copy is made at a time
BF16 = torch.bfloat16


def huge(check: Check) -> None:
    """One line for each operator."""
    check.table("operator", "size", "value: ours / eager", "gradients: ours / eager", "verdict")
    for name, sizes in SIZES.items():
        rows, classes, features = sizes[check.tiny]
        torch.manual_seed(check.seed)
        with check.guarded(f"{name} {sizes[check.tiny]}"), check.kernels(), torch.device(check.device):
            triples = JUDGES[name](rows, classes, features)
            (value, gradients), dtype = _worst(triples), triples[0][0].dtype
            ok = all(ours <= eager + TOLERANCE[dtype] for ours, eager in (value, gradients))
            size = f"[{rows}, {classes}]" if not features else f"[{rows or classes}, {classes} x {features}]"
            cells = (f"{ours:.1e} / {eager:.1e}" for ours, eager in (value, gradients))
            check.row(name, f"{size} {str(dtype)[6:]}", *cells, "ok" if ok else "FAIL")
            if not ok:
                check.fail(f"huge {name}: {[(error(a, t), error(b, t)) for a, b, t in triples]}")
        if check.device == "cuda":
            torch.cuda.empty_cache()


Triples = list[tuple[Tensor, Tensor, Tensor]]  # ours, eager torch's, float64's: the value first, then gradients


def _worst(triples: Triples) -> list[tuple[float, float]]:
    """(ours, eager) for the value, and for the gradient where ours is worst beside eager."""
    pairs = [(error(ours, exact), error(eager, exact)) for ours, eager, exact in triples]
    return [pairs[0], max(pairs[1:], key=lambda pair: pair[0] - pair[1])]


def sample(size: int, *more: int) -> Tensor:
    """Indices at both ends, in the middle, at random, and those given, where there are such."""
    wanted = [0, 1, size // 2, size - 2, size - 1, *more, *torch.randint(size, (8,)).tolist()]
    return torch.tensor(sorted({index for index in wanted if 0 <= index < size}))


def _logits(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    logits = torch.empty(rows, classes, dtype=BF16).normal_(std=3.0).requires_grad_()
    return logits, torch.randint(classes, (rows,))


def _rows(rows: int, classes: int, _: int) -> Triples:
    """Rows beyond 2^31 elements; the sample includes those on both sides."""
    logits, target = _logits(rows, classes)
    offset = torch.randn(classes)
    value = functional.offset_cross_entropy(logits, target, offset=offset, reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), logits)
    some = sample(rows, 2**31 // classes, 2**31 // classes + 1)
    eager, exact = (
        _with_gradient(lambda z: F.cross_entropy(z + offset.to(z.dtype), target[some], reduction="none"), part)
        for part in (logits.detach()[some], logits.detach()[some].double())
    )
    return list(zip((value.detach()[some], slope[some]), eager, exact))


def _with_gradient(function: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, Tensor]:
    leaf = leaf.detach().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def _lade(rows: int, classes: int, _: int) -> Triples:
    """The regulariser is a sum over classes: each sampled column is judged by itself."""
    logits, target = _logits(rows, classes)
    counts = torch.randint(1, 500, (classes,)).double()
    value = functional.lade_regularizer(logits, target, counts)
    (slope,) = torch.autograd.grad(value, logits)
    prior, some = counts / counts.sum(), sample(classes)
    members = target[:, None] == some
    uniform = torch.tensor(1 / classes + 1e-9, dtype=torch.float64).log()

    def of_columns(z: Tensor) -> Tensor:
        own = (z * members).sum(0) / (members.sum(0) + 1e-8)
        shift = uniform - (prior[some] + 1e-9).log() - torch.tensor(float(rows), dtype=torch.float64).log()
        bound = z.logsumexp(0) + shift.to(z.dtype)
        return prior[some].to(z.dtype) * (-own + bound + 0.1 * bound**2)

    columns = logits.detach()[:, some]
    eager, exact = (_with_gradient(of_columns, part)[1] for part in (columns, columns.double()))
    finite = value.detach().isfinite().to(BF16)
    return [(finite, finite, torch.ones_like(finite)), (slope[:, some], eager, exact)]


def _features(rows: int, classes: int, features: int, *, cosine: bool) -> Triples:
    """Class weights beyond 2^31 elements; targets among the last classes too."""
    scale = 16.0 if cosine else 1.0
    input = torch.randn(rows, features).to(BF16).requires_grad_()
    weight = torch.empty(classes, features, dtype=BF16).normal_(std=features**-0.5).requires_grad_()
    target = torch.cat([sample(classes, 2**31 // features), torch.randint(classes, (rows,))])[:rows]
    target[:2] = torch.tensor([classes - 1, min(2**31 // features + 1, classes - 1)])[:rows]
    if cosine:
        value = functional.cosine_margin_cross_entropy(input, weight, target, scale=scale)
    else:
        value = functional.linear_cross_entropy(input, weight, target)
    ours = [value.detach(), *torch.autograd.grad(value, (input, weight))]
    ours[2] = ours[2][target].clone()
    eager_value = F.cross_entropy(_products(input, weight, cosine, scale), target)
    eager = [eager_value.detach(), *torch.autograd.grad(eager_value, (input, weight))]
    eager[2] = eager[2][target].clone()
    return list(zip(ours, eager, _exact(input.detach(), weight.detach(), target, cosine, scale)))


def _products(input: Tensor, weight: Tensor, cosine: bool, scale: float) -> Tensor:
    if cosine:
        return scale * F.linear(F.normalize(input), F.normalize(weight))
    return F.linear(input, weight)


def _parts(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for first in range(0, len(weight), CHUNK):
        part = slice(first, min(first + CHUNK, len(weight)))
        yield part, weight[part].double()


def _exact(input: Tensor, weight: Tensor, target: Tensor, cosine: bool, scale: float) -> list[Tensor]:
    """The loss, the gradient of the input, and that of the targets' class weights, in float64."""
    leaf = input.double().requires_grad_()
    logits = torch.cat([_products(leaf, part, cosine, scale).detach() for _, part in _parts(weight)], 1)
    loss = F.cross_entropy(logits, target)
    slope = logits.softmax(1)
    slope[torch.arange(len(input)), target] -= 1
    slope /= len(input)
    d_input = torch.zeros_like(leaf)
    for part, values in _parts(weight):
        d_input += torch.autograd.grad((_products(leaf, values, cosine, scale) * slope[:, part]).sum(), leaf)[0]
    chosen = weight[target].double().requires_grad_()
    own = (_products(leaf.detach(), chosen, cosine, scale) * slope[:, target]).sum()
    return [loss, d_input, torch.autograd.grad(own, chosen)[0]]


def _repulsion(_: int, classes: int, features: int, threshold: float = 0.4) -> Triples:
    """C x C beyond 2^31: every row's sum in float64, then the gradient of a sample of rows."""
    centers = F.normalize(torch.randn(100, features))[torch.arange(classes) % 100]
    weight = (centers + F.normalize(torch.randn(classes, features))).requires_grad_()
    value = functional.logit_weight_repulsion(weight, threshold=threshold, reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), weight)
    unit, some = F.normalize(weight.detach().double()), sample(classes)
    total = torch.cat([_row_sums(part, unit, first, threshold) for first, part in _blocks(unit)])
    rows = weight.detach()[some].double().requires_grad_()
    alike = F.normalize(rows) @ unit.T
    others = (alike > threshold) & (torch.arange(classes) != some[:, None])
    share = alike.detach().exp() * (1 / total[some][:, None] + 1 / total)
    (exact,) = torch.autograd.grad(torch.where(others, alike * share, 0.0).sum(), rows)
    kept = torch.tensor(float(threshold < 1))
    return [_judged(value.detach()[some], total[some].log() - kept), _judged(slope[some], exact)]


def _blocks(unit: Tensor, rows: int = 2_000) -> Iterator[tuple[int, Tensor]]:
    return ((first, unit[first : first + rows]) for first in range(0, len(unit), rows))


def _row_sums(part: Tensor, unit: Tensor, first: int, threshold: float) -> Tensor:
    """sum_j exp(1[s > threshold] s) of some rows, their own entry exactly 1."""
    alike = part @ unit.T
    alike[torch.arange(len(part)), first + torch.arange(len(part))] = 1.0
    return torch.where(alike > threshold, alike, 0.0).exp().sum(1)


def _judged(ours: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without an eager form, which would need several C x C matrices: the exact result, rounded."""
    return ours, exact.to(ours.dtype), exact


JUDGES: dict[str, Callable[[int, int, int], Triples]] = {
    "rows": _rows,
    "linear": functools.partial(_features, cosine=False),
    "cosine": functools.partial(_features, cosine=True),
    "lade": _lade,
    "repulsion": _repulsion,
}
