"""What torch asks of its own operators, asked of ours, by the checks that come with it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal import optests
from torch.testing._internal.common_device_type import instantiate_device_type_tests, ops
from torch.testing._internal.common_utils import TestCase
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils import _pytree as pytree

from opinfo.entries import ENTRIES

DOUBLE = (torch.float64,)
REFUSED = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)


def needs(name: str) -> Callable[..., Any]:
    """Skip where this torch does not bring a check."""
    return pytest.mark.skipif(not hasattr(optests, name), reason=f"torch {torch.__version__} has no optests.{name}")


def samples(op: OpInfo, dtype: torch.dtype, requires_grad: bool = True) -> list[SampleInput]:
    """The entry's own calls."""
    return list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))


def leaves(sample: SampleInput) -> list[Tensor]:
    """What takes a gradient."""
    every = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [one for one in every if isinstance(one, Tensor) and one.requires_grad]


def called(op: OpInfo, sample: SampleInput) -> tuple[Tensor, ...]:
    """The value, and the gradients of its sum."""
    value = op(sample.input, *sample.args, **sample.kwargs)
    return value, *torch.autograd.grad(value.sum(), leaves(sample))


def of_leaves(op: OpInfo, sample: SampleInput) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The call as a function of what takes a gradient."""
    every, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, one in enumerate(every) if isinstance(one, Tensor) and one.requires_grad]

    def function(*given: Tensor) -> Tensor:
        filled = list(every)
        for place, one in zip(places, given, strict=True):
            filled[place] = one
        input, args, kwargs = pytree.tree_unflatten(filled, spec)
        return op(input, *args, **kwargs)

    return function, tuple(every[place] for place in places)


def is_traced(sample: SampleInput) -> bool:
    """Whether every tensor is an argument: these tracers take no constants, as Dynamo does (test_compile.py)."""
    return getattr(sample.kwargs.get("margin"), "per_class", None) is None


class TestEntries(TestCase):
    """One test for each entry, dtype and check."""

    def same(self, found: Any, expected: Any, dtype: torch.dtype) -> None:
        """Equal to the project's own tolerance, relative to the largest number of each tensor if that is above 1: what
        cancels in a sum was rounded at the size of its terms, and in another order where rows are not adjacent.
        """
        for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            largest = max([1.0, *other.detach().abs().flatten().tolist()])
            torch.testing.assert_close(one, other, atol=2 * largest * TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    @ops(ENTRIES)
    def test_dtypes(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Value and gradients are finite and of the input's dtype; what is no floating point is refused."""
        for sample in samples(op, dtype):
            value, *slopes = called(op, sample)
            assert all(one.dtype == dtype and one.isfinite().all() for one in (value, *slopes))
            for other in REFUSED:
                with pytest.raises(TypeError, match="must be float32, float64, bfloat16 or float16"):
                    op(sample.input.detach().to(other), *sample.args, **sample.kwargs)

    @ops(ENTRIES, allowed_dtypes=(torch.float32, torch.float64))
    def test_noncontiguous_samples(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """torch's own noncontiguous copies, with something else in the gaps, give the same."""
        for sample in samples(op, dtype):
            self.same(called(op, sample.noncontiguous()), called(op, sample), dtype)

    @ops(ENTRIES, allowed_dtypes=(torch.float32,))
    def test_errors(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """What does not fit is refused by name."""
        for wrong in op.error_inputs(device):
            sample = wrong.sample_input
            with pytest.raises(wrong.error_type, match=wrong.error_regex):
                op(sample.input, *sample.args, **sample.kwargs)

    @ops(ENTRIES, allowed_dtypes=DOUBLE)
    def test_gradcheck(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Finite differences; also many incoming gradients at once."""
        for sample in samples(op, dtype):
            assert gradcheck(*of_leaves(op, sample), check_batched_grad=True)

    @ops(ENTRIES, allowed_dtypes=DOUBLE)
    def test_gradgradcheck(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Second derivatives are right, or an error that says so; where the entry has them, the first call does."""
        refused = [self.refused(sample, op) for sample in samples(op, dtype)]
        assert all(re.search(r"first derivatives only|once_differentiable", words) for words in refused if words)
        assert not (op.supports_gradgrad and refused[0])

    def refused(self, sample: SampleInput, op: OpInfo) -> str:
        """Why a call has no second derivatives; "" if they are right."""
        try:
            assert gradgradcheck(*of_leaves(op, sample), fast_mode=True)
        except NotImplementedError as error:
            return str(error)
        return ""

    @ops(ENTRIES, allowed_dtypes=DOUBLE)
    def test_forward_mode(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Forward mode is right, or an error of torch's that says so; never a silent zero."""
        for sample in samples(op, dtype):
            function, given = of_leaves(op, sample)
            tangents = tuple(torch.ones_like(one) for one in given)
            slopes = torch.autograd.grad(function(*given).sum(), given)
            try:
                pushed = torch.func.jvp(function, tuple(one.detach() for one in given), tangents)[1]
            except (NotImplementedError, RuntimeError) as error:
                if not re.search(r"jvp|[Ff]orward", str(error)):
                    raise
                continue
            self.same(pushed.sum(), sum((one * two).sum() for one, two in zip(slopes, tangents, strict=True)), dtype)

    @needs("fake_check")
    @ops(ENTRIES, allowed_dtypes=(torch.float32,))
    def test_fake(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Fake tensors have the shapes, strides and dtypes of the real ones, in both directions."""
        for sample in samples(op, dtype):
            with warnings.catch_warnings():  # torch's own look at the gradients of what is no leaf
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                optests.fake_check(partial(called, op), (sample,), {})

    @needs("make_fx_check")
    @ops(ENTRIES, allowed_dtypes=(torch.float32,))
    def test_make_fx(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """A graph traced with fake tensors gives the same."""
        for sample in filter(is_traced, samples(op, dtype, requires_grad=False)):
            args = (sample.input, *sample.args)
            optests.make_fx_check(op.op, args, sample.kwargs, "fake", torch.testing.assert_close)

    @needs("aot_autograd_check")
    @ops(ENTRIES, allowed_dtypes=(torch.float32,))
    def test_compile(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """AOT autograd, which torch.compile stands on, gives the same values and gradients."""
        for sample in filter(is_traced, samples(op, dtype)):
            args = (sample.input, *sample.args)
            optests.aot_autograd_check(op.op, args, sample.kwargs, dynamic=False)

    @ops(ENTRIES, allowed_dtypes=DOUBLE)
    def test_vmap(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """A stack of calls equals the calls one by one, forward and backward."""
        for sample in samples(op, dtype):
            function, given = of_leaves(op, sample)
            stacks = tuple(torch.stack((one, 0.5 * one, -one)).detach() for one in given)
            slope = torch.func.grad(lambda *one, f=function: f(*one).sum(), tuple(range(len(given))))
            found = (torch.func.vmap(function)(*stacks), *torch.func.vmap(slope)(*stacks))
            parts = [(function(*one), *slope(*one)) for one in zip(*stacks, strict=True)]
            self.same(found, tuple(torch.stack(one) for one in zip(*parts, strict=True)), dtype)


instantiate_device_type_tests(TestEntries, globals(), only_for="cpu")
