"""An entry of torch's OpInfo for each public function and kind of arguments: what it takes, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.testing import make_tensor
from torch.testing._internal.common_dtype import floating_types_and
from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput

from lt_kernels import functional
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

N, C, D = 4, 7, 3
COUNTS = torch.tensor([50.0, 20.0, 9.0, 5.0, 3.0, 2.0, 1.0])
Options = list[dict[str, Any]]


def _target(*shape: int) -> Tensor:
    return make_tensor(shape, low=0, high=C, dtype=torch.int64, device="cpu")


def _floats(op: OpInfo, device: str, dtype: torch.dtype, requires_grad: bool) -> Callable[..., Tensor]:
    return partial(make_tensor, dtype=dtype, device=device, low=-2, high=2, requires_grad=requires_grad)


def _logits(options: Options, op: OpInfo, *about: Any, **_: Any) -> Iterator[SampleInput]:
    """Logits of each shape, with each of the options."""
    made, table = _floats(op, *about), _floats(op, about[0], about[1], False)
    for given in options:
        kwargs = {key: value(table) if callable(value) else value for key, value in given.items()}
        yield SampleInput(made((N, C)), args=(_target(N),), kwargs=kwargs)
    if op.variant_test_name == "plain":
        yield SampleInput(made((C,)), args=(_target(),), kwargs={})
        yield SampleInput(made((N, C, 2)), args=(_target(N, 2),), kwargs={"reduction": "none"})
        ignored = torch.tensor([1, -100, 3, -100])
        yield SampleInput(made((N, C)), args=(ignored,), kwargs={})
    if op.variant_test_name == "probabilities":
        yield SampleInput(made((N, C)), args=(table((N, C)).softmax(1),), kwargs={"label_smoothing": 0.1})
    if op.variant_test_name == "mixed":
        for given in ({}, {"focal_gamma": 1.5, "reduction": "none"}):
            yield SampleInput(made((N, C)), args=(_target(N), _target(N)), kwargs=given)


def _mixed(logits: Tensor, first: Tensor, second: Tensor, **options: Any) -> Tensor:
    """Two targets a row, each a tensor among the arguments."""
    return functional.offset_cross_entropy(logits, MixedTarget(first, second, 0.3), **options)


def _features(options: Options, op: OpInfo, *about: Any, **_: Any) -> Iterator[SampleInput]:
    """Features and class weights, with each of the options."""
    made, table = _floats(op, *about), _floats(op, about[0], about[1], False)
    for given in options:
        kwargs = {key: value(table) if callable(value) else value for key, value in given.items()}
        if kwargs.pop("bias", False):
            kwargs["linear_bias"] = made((C,))
        yield SampleInput(made((N, D)), args=(made((C, D)), _target(N)), kwargs=kwargs)


def _rows(options: Options, op: OpInfo, *about: Any, **_: Any) -> Iterator[SampleInput]:
    """Class weights, with each of the options."""
    made = _floats(op, *about)
    yield from (SampleInput(made((C, D)), kwargs=given) for given in options)


def _counted(options: Options, op: OpInfo, *about: Any, **_: Any) -> Iterator[SampleInput]:
    """Logits with class counts, and each of the options."""
    made = _floats(op, *about)
    yield from (SampleInput(made((N, C)), args=(_target(N), COUNTS), kwargs=given) for given in options)


def _refused(first: tuple[int, ...], rest: tuple[Any, ...], op: OpInfo, device: str, **_: Any) -> Iterator[ErrorInput]:
    """What every function refuses by name: a wrong dtype, a wrong shape, a wrong word."""
    good = torch.zeros(first)
    tensors = ("logits", "input", "linear_weight")
    yield ErrorInput(SampleInput(good.long(), args=rest), error_type=TypeError, error_regex="must be float32")
    yield ErrorInput(
        SampleInput(good.to(torch.complex64), args=rest), error_type=TypeError, error_regex="|".join(tensors)
    )
    yield ErrorInput(SampleInput(good[None, None], args=rest), error_type=ValueError, error_regex="must be|must have")
    if op.name != "lade_regularizer":
        wrong = SampleInput(good, args=rest, kwargs={"reduction": "average"})
        yield ErrorInput(wrong, error_type=ValueError, error_regex="reduction must be one of")
    if op.name == "logit_weight_repulsion" or op.variant_test_name == "mixed":
        return
    place = 1 if op.name in ("linear_cross_entropy", "cosine_margin_cross_entropy") else 0
    for target, kind, words in (
        (torch.full((N,), C), IndexError, "target"),
        (torch.full((N,), -7), IndexError, "target"),
        (torch.zeros(N + 1, dtype=torch.int64), ValueError, "target must have shape"),
        (torch.zeros(N, dtype=torch.bool), TypeError, "target must hold class indices"),
    ):
        args = (*rest[:place], target, *rest[place + 1 :])
        yield ErrorInput(SampleInput(good, args=args), error_type=kind, error_regex=words)


def _entry(name: str, variant: str, samples: Callable[..., Any], options: Options, twice: bool = False) -> OpInfo:
    """An entry; `twice`: whether it has second derivatives."""
    weights, target = torch.ones(C, D), torch.zeros(N, dtype=torch.int64)
    first, rest = {
        "offset_cross_entropy": ((N, C), (target, target) if variant == "mixed" else (target,)),
        "linear_cross_entropy": ((N, D), (weights, target)),
        "cosine_margin_cross_entropy": ((N, D), (weights, target)),
        "logit_weight_repulsion": ((C, D), ()),
        "lade_regularizer": ((N, C), (target, COUNTS)),
    }[name]
    return OpInfo(
        name,
        variant_test_name=variant,
        op=_mixed if variant == "mixed" else getattr(functional, name),
        dtypes=floating_types_and(torch.bfloat16, torch.float16),
        sample_inputs_func=partial(samples, options),
        error_inputs_func=partial(_refused, first, rest),
        supports_out=False,
        supports_gradgrad=twice,
        supports_forward_ad=False,
    )


PLAIN: Options = [{}, {"reduction": "sum"}, {"reduction": "none"}]
TABLES: Options = [
    {"weight": lambda made: made((C,)).abs(), "offset": lambda made: made((C,))},
    {"offset": lambda made: made((C, C)), "reduction": "sum"},
    {"offset": lambda made: made((N, C)), "focal_gamma": 1.5},
    {"label_smoothing": 0.1, "reduction": "none"},
    {"label_smoothing": lambda made: made((C,)).sigmoid()},
    {"sample_weight": lambda made: made((N,)).abs(), "z_loss": 0.1, "weight": lambda made: made((C,)).abs()},
]
MARGINS: Options = [
    *({"margin": margin} for margin in (None, CosFace(0.3), ArcFace(0.4), SphereFace(3), SphereFace(3, 1.5))),
    *({"margin": margin, "scale": 8.0} for margin in (LDAM(COUNTS), DBM(COUNTS, 0.2), DBM(COUNTS, 0.3, applies="all"))),
]
ENTRIES = [
    _entry("offset_cross_entropy", "plain", _logits, PLAIN, twice=True),
    _entry("offset_cross_entropy", "tables", _logits, TABLES),
    _entry("offset_cross_entropy", "probabilities", _logits, []),
    _entry("offset_cross_entropy", "mixed", _logits, []),
    _entry("linear_cross_entropy", "plain", _features, [*PLAIN, {"bias": True}], twice=True),
    _entry("linear_cross_entropy", "tables", _features, TABLES),
    _entry("cosine_margin_cross_entropy", "margins", _features, MARGINS),
    _entry("logit_weight_repulsion", "", _rows, [{}, {"threshold": -1.0}, {"threshold": 0.2, "reduction": "none"}]),
    _entry("logit_weight_repulsion", "raw", _rows, [{"project": "raw"}, {"project": "raw", "threshold": -1.0}]),
    _entry("lade_regularizer", "", _counted, [{}, {"importance": "sample"}, {"classes": "present", "lam": 0.5}]),
]
