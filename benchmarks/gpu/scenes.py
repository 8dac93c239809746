"""What the GPU check runs: every public function with every option, at sizes odd and even, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import dense
from benchmarks.gpu.pool import Function, Pool, Scene, Sizes
from lt_kernels import functional, memory_budget
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace


def scenes(part: str, pool: Pool, sizes: Sizes) -> Iterator[Scene]:
    """The scenes of one part, in an order that is the same for every dtype."""
    plain, options = {
        "rows": (_row, row_options),
        "linear": (_linear, linear_options),
        "cosine": (_cosine, cosine_options),
        "repulsion": (_repulsion, repulsion_options),
        "lade": (_lade, lade_options),
    }[part]
    for shape in sizes.plain[part]:
        yield plain(pool, shape)
    for shape in sizes.options[part]:
        yield from options(pool, shape)


def _row(pool: Pool, shape: tuple[int, ...], name: str = "plain", **given: Any) -> Scene:
    rows, classes = shape
    logits = given.pop("logits", None)
    target = given.pop("target", None)
    target = pool.classes(rows, below=classes) if target is None else target
    extra = {"offset": given.pop("offset")} if "offset" in given else {}
    constants = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    options = {key: value for key, value in given.items() if key not in constants}
    return Scene(
        f"offset_cross_entropy, {name}",
        lambda logits, **rest: functional.offset_cross_entropy(logits, target, **rest, **options),
        lambda logits, **rest: dense.entropy(logits, target, **rest, **options),
        {"logits": pool.normal(rows, classes, spread=3.0) if logits is None else logits, **extra},
        constants,
    )


def row_options(pool: Pool, shape: tuple[int, ...]) -> Iterator[Scene]:
    """`offset_cross_entropy` with each option."""
    rows, classes = shape
    pair = [pool.classes(rows, below=classes - 1) for _ in range(2)]
    mixed = MixedTarget(pair[0], pair[1], 0.3)
    per_class, weight = pool.rounded(torch.linspace(0.0, 0.5, classes).double()), pool.positive(classes)
    missing = pool.rounded(pool.draw(classes).index_fill(0, torch.tensor(classes - 1), -torch.inf))
    soft = pool.rounded(pool.draw(rows, classes).softmax(1))
    ignored = pair[0].clone()
    ignored[::3] = -100
    yield _row(pool, shape, "sum", reduction="sum")
    yield _row(pool, shape, "none", reduction="none")
    yield _row(pool, shape, "ignored rows", target=ignored)
    yield _row(pool, shape, "ignore_index", target=pair[0], ignore_index=int(pair[0][0]))
    yield _row(pool, shape, "weight, smoothing", weight=weight, label_smoothing=0.2)
    yield _row(pool, shape, "smoothing by class", label_smoothing=per_class)
    yield _row(pool, shape, "focal", focal_gamma=2.0)
    yield _row(pool, shape, "focal below one", focal_gamma=0.5, label_smoothing=0.1, weight=weight)
    yield _row(pool, shape, "offset", offset=pool.normal(classes))
    yield _row(pool, shape, "offset by row", offset=pool.normal(rows, classes))
    yield _row(pool, shape, "offset by target", offset=pool.normal(1, classes, classes))
    yield _row(pool, shape, "class that is not there", target=pair[0], offset=missing)
    yield _row(pool, shape, "the same, smoothing", target=pair[0], offset=missing, label_smoothing=0.1)
    yield _row(pool, shape, "probabilities", target=soft, offset=pool.normal(classes), label_smoothing=0.1)
    yield _row(pool, shape, "mixed", target=mixed, focal_gamma=1.0, label_smoothing=0.1, weight=weight)
    yield _row(pool, shape, "z-loss, weights of rows", z_loss=1e-2, sample_weight=pool.positive(rows))
    yield _row(pool, shape, "softcap", softcap=2.0, offset=pool.normal(classes))
    yield _row(pool, shape, "one row", logits=pool.normal(classes), target=pair[0][0])
    axes = {"logits": pool.normal(rows, classes, 2), "target": pool.classes(rows, 2, below=classes)}
    yield _row(pool, shape, "many axes", **axes, weight=weight)
    yield _row(pool, shape, "strided rows", logits=pool.normal(rows, 2 * classes)[:, :classes])
    yield _row(pool, shape, "strided classes", logits=pool.normal(classes, rows).T)


def _within(shape: tuple[int, ...], slabs: bool, call: Function) -> Function:
    """The call; for `slabs` with a budget of a quarter of its logits or less, so that they are made part by part."""
    budget = max(1, shape[0] * shape[1] // 2)

    def small(**tensors: Tensor) -> Tensor:
        with memory_budget(budget):
            return call(**tensors)

    return small if slabs else call


def _linear(pool: Pool, shape: tuple[int, ...], name: str = "plain", **given: Any) -> Scene:
    rows, classes, size = shape
    target, slabs = given.pop("target", None), given.pop("slabs", False)
    target = pool.classes(rows, below=classes) if target is None else target
    leaves = pool.features(rows, classes, size, pool.classes(rows, below=classes))
    leaves |= {key: given.pop(key) for key in ("linear_bias", "linear_weight", "offset") if key in given}
    constants = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    options = {key: value for key, value in given.items() if key not in constants}
    return Scene(
        f"linear_cross_entropy, {name}",
        _within(shape, slabs, lambda **tensors: functional.linear_cross_entropy(target=target, **tensors, **options)),
        lambda **tensors: dense.linear(target=target, **tensors, **options),
        leaves,
        constants,
    )


def linear_options(pool: Pool, shape: tuple[int, ...]) -> Iterator[Scene]:
    """`linear_cross_entropy` with each option."""
    rows, classes, size = shape
    pair = [pool.classes(rows, below=classes - 1) for _ in range(2)]
    missing = pool.rounded(pool.draw(classes).index_fill(0, torch.tensor(classes - 1), -torch.inf))
    soft = pool.rounded(pool.draw(rows, classes).softmax(1))
    bias, offset, weight = pool.normal(classes), pool.normal(classes), pool.positive(classes)
    slabs = {"slabs": True, "label_smoothing": 0.1}
    yield _linear(pool, shape, "bias, offset, weight", linear_bias=bias, offset=offset, weight=weight)
    yield _linear(pool, shape, "class that is not there", target=pair[0], offset=missing)
    yield _linear(pool, shape, "focal, sum", focal_gamma=1.5, label_smoothing=0.1, reduction="sum")
    yield _linear(pool, shape, "probabilities", target=soft, label_smoothing=0.1)
    yield _linear(pool, shape, "mixed, none", target=MixedTarget(pair[0], pair[1], 0.3), reduction="none")
    yield _linear(pool, shape, "offset by row", offset=pool.normal(rows, classes))
    yield _linear(pool, shape, "strided weight", linear_weight=pool.normal(size, classes, spread=size**-0.5).T)
    yield _linear(pool, shape, "z-loss, weights of rows", z_loss=1e-2, sample_weight=pool.positive(rows))
    yield _linear(pool, shape, "slabs", slabs=True)
    yield _linear(pool, shape, "slabs, softcap, z-loss", softcap=2.0, z_loss=1e-2, slabs=True)
    yield _linear(pool, shape, "slabs, bias, offset, smoothing", linear_bias=bias, offset=offset, **slabs)
    yield _linear(pool, shape, "slabs, mixed", target=MixedTarget(pair[0], pair[1], 0.3), **slabs)


def _margin(name: str, counts: Tensor) -> Any:
    margins = {"cosface": CosFace(0.3), "arcface": ArcFace(0.5), "sphereface": SphereFace(4), "ldam": LDAM(counts)}
    margins |= {"sphereface annealed": SphereFace(4, 2.0), "dbm of all": DBM(counts, 0.3, applies="all")}
    margins |= {"dbm": DBM(counts, 0.3), "dbm guard": DBM(counts, 0.9, tau=0.2, instance=2.0, guard=True)}
    return margins.get(name)


def _cosine(pool: Pool, shape: tuple[int, ...], margin: str = "arcface", name: str = "", **given: Any) -> Scene:
    rows, classes, size = shape
    counts, target, slabs = pool.counts(classes), given.pop("target", None), given.pop("slabs", False)
    near = target.first if isinstance(target, MixedTarget) else target
    near = pool.classes(rows, below=classes) if near is None else near
    target = near if target is None else target
    leaves = pool.features(rows, classes, size, near)
    leaves |= {key: given.pop(key) for key in ("offset",) if key in given}
    constants = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    options = {key: value for key, value in given.items() if key not in constants}
    scale, value = (0.5 if margin.startswith("sphereface") else 16.0), _margin(margin, counts)
    ours = functional.cosine_margin_cross_entropy
    return Scene(
        f"cosine_margin_cross_entropy, {', '.join(filter(None, (margin, name)))}",
        _within(shape, slabs, lambda **leaf: ours(target=target, margin=value, scale=scale, **leaf, **options)),
        lambda **leaf: dense.cosine(target=target, margin=margin, scale=scale, counts=counts, **leaf, **options),
        leaves,
        constants,
    )


def cosine_options(pool: Pool, shape: tuple[int, ...]) -> Iterator[Scene]:
    """`cosine_margin_cross_entropy` with each margin and option."""
    rows, classes, _ = shape
    pair = [pool.classes(rows, below=classes - 1) for _ in range(2)]
    missing = pool.rounded(pool.draw(classes).index_fill(0, torch.tensor(classes - 1), -torch.inf))
    ignored = pair[0].clone()
    ignored[::3] = -100
    yield _cosine(pool, shape, "none")
    yield _cosine(pool, shape, "cosface", "smoothing", label_smoothing=0.1)
    yield _cosine(pool, shape, "arcface", "weight, ignored rows", weight=pool.positive(classes), target=ignored)
    yield _cosine(pool, shape, "sphereface")
    yield _cosine(pool, shape, "sphereface annealed")
    yield _cosine(pool, shape, "dbm of all")
    yield _cosine(pool, shape, "ldam", "offset, none", offset=pool.normal(classes), reduction="none")
    yield _cosine(pool, shape, "dbm", "offset", offset=pool.normal(classes))
    yield _cosine(pool, shape, "dbm guard", "focal", focal_gamma=1.0)
    yield _cosine(pool, shape, "dbm", "mixed", target=MixedTarget(pair[0], pair[1], 0.3))
    yield _cosine(pool, shape, "arcface", "slabs, class not there", target=pair[0], offset=missing, slabs=True)
    yield _cosine(pool, shape, "sphereface", "slabs", slabs=True)
    yield _cosine(pool, shape, "dbm", "slabs", slabs=True)


def free_threshold(weight: Tensor, wanted: float) -> float:
    """The middle of the widest gap between cosines near `wanted`: there no rounding moves a pair across."""
    unit = F.normalize(weight.double())
    cosine = (unit @ unit.T).flatten()
    close = torch.cat([cosine[(cosine - wanted).abs() < 0.02], cosine.new_tensor([wanted - 0.02, wanted + 0.02])])
    close = close.sort().values
    widest = close.diff().argmax()
    return float((close[widest] + close[widest + 1]) / 2)


def _repulsion(pool: Pool, shape: tuple[int, ...], name: str = "plain", wanted: float = 0.4, **options: Any) -> Scene:
    classes, size = shape
    groups = max(1, min(50, classes // 4))
    centers = F.normalize(pool.draw(groups, size))[torch.arange(classes) % groups]
    weight = pool.rounded(centers + F.normalize(pool.draw(classes, size)))
    options["threshold"] = wanted if wanted <= -1 else free_threshold(weight, wanted)
    return Scene(
        f"logit_weight_repulsion, {name}",
        lambda linear_weight: functional.logit_weight_repulsion(linear_weight, **options),
        lambda linear_weight: dense.repulsion(linear_weight, **options),
        {"linear_weight": weight},
    )


def repulsion_options(pool: Pool, shape: tuple[int, ...]) -> Iterator[Scene]:
    """`logit_weight_repulsion` with each option."""
    yield _repulsion(pool, shape, "none", reduction="none")
    yield _repulsion(pool, shape, "all pairs, mean", wanted=-1.0, reduction="mean")
    yield _repulsion(pool, shape, "half of the pairs", wanted=0.0)
    yield _repulsion(pool, shape, "fixed norms", project=False)
    yield _repulsion(pool, shape, "raw", project="raw")
    yield _repulsion(pool, shape, "no pair", wanted=1.5)


def _lade(pool: Pool, shape: tuple[int, ...], name: str = "plain", **options: Any) -> Scene:
    rows, classes = shape
    target, counts = pool.classes(rows, below=classes), pool.counts(classes)
    return Scene(
        f"lade_regularizer, {name}",
        lambda logits: functional.lade_regularizer(logits, target, counts, **options),
        lambda logits: dense.lade(logits, target, counts, **options),
        {"logits": pool.normal(rows, classes, spread=2.0)},
    )


def lade_options(pool: Pool, shape: tuple[int, ...]) -> Iterator[Scene]:
    """`lade_regularizer` with each option."""
    yield _lade(pool, shape, "lam", lam=0.3)
    yield _lade(pool, shape, "sample, present", importance="sample", classes="present")
    yield _lade(pool, shape, "sample, all", importance="sample", lam=0.5)
