"""The graphs of losses of cosines on the direct way."""

from __future__ import annotations

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close

from lt_kernels.functional import ArcFace, cosine_margin_cross_entropy
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C, D = 9, 7, 5
MARGIN = ArcFace(0.4)


def leaves(dtype=torch.float32):
    return [normal(size, D, seed=size, dtype=dtype).requires_grad_() for size in (N, C)]


def loss_of(x, w, reduction="mean"):
    loss = cosine_margin_cross_entropy(x, w, classes_of(N, C, seed=4), margin=MARGIN, scale=10.0, reduction=reduction)
    assert not loss.requires_grad or loss.grad_fn.name() == "FeaturesLossBackward"
    return loss


def exact_gradients(inputs, reduction="mean"):
    """By the operators, in float64."""
    wide = [leaf.detach().double().requires_grad_() for leaf in inputs]
    with use_kernels("compiled"):
        loss = cosine_margin_cross_entropy(
            *wide, classes_of(N, C, seed=4), margin=MARGIN, scale=10.0, reduction=reduction
        )
        return torch.autograd.grad(loss.sum(), wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_wherever_it_stands_in_a_graph(dtype, reduction, factor):
    """Alone or with something behind it, once and again in a kept graph; the made gradient is not used up by that."""
    inputs = leaves(dtype)
    loss, exact = factor * loss_of(*inputs, reduction), exact_gradients(inputs, reduction)
    for keep in (True, True, False):
        found = torch.autograd.grad(loss.sum(), inputs, retain_graph=keep)
        for one, other in zip(found, exact, strict=True):
            assert_close(one, factor * other)
            one.zero_()  # somebody's own tensor
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss.sum(), inputs)


def test_many_incoming_gradients_at_once():
    inputs = leaves()
    many, exact = torch.tensor([1.0, -0.5]), exact_gradients(inputs)
    found = torch.autograd.grad(loss_of(*inputs), inputs, many, is_grads_batched=True)
    loss = loss_of(*inputs)
    again = torch.func.vmap(lambda grad: torch.autograd.grad(loss, inputs, grad, retain_graph=True))(many)
    for one, other, whole in zip(found, again, exact, strict=True):
        for place in range(2):
            assert_close(one[place], many[place] * whole)
            assert_close(other[place], many[place] * whole)


@pytest.mark.parametrize("factor", [1.0, 0.7])
@pytest.mark.parametrize("place", [0, 1])
def test_frozen_inputs_get_no_gradient(place, factor):
    inputs = leaves()
    exact = exact_gradients(inputs)[place]
    inputs[1 - place].requires_grad_(False)
    for reduction in ("mean", "none"):
        loss = loss_of(*inputs, reduction)
        (factor * (loss.mean() if reduction == "none" else loss)).backward()
        assert inputs[1 - place].grad is None
        assert_close(inputs[place].grad, factor * exact)
        inputs[place].grad = None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_an_error(reduction):
    inputs = leaves()
    slopes = torch.autograd.grad(loss_of(*inputs, reduction).sum(), inputs, create_graph=True)
    for one, other in zip(slopes, exact_gradients(inputs, reduction), strict=True):
        assert_close(one, other)
    with pytest.raises(NotImplementedError, match="features_slopes has no derivative of its own"):
        slopes[0].sum().backward()


def test_changed_inputs_are_noticed():
    for place in (0, 1):
        inputs = leaves()
        loss = loss_of(*inputs)
        with torch.no_grad():
            inputs[place].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_autocast_around_the_backward_changes_nothing():
    inputs = leaves()
    loss = loss_of(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, inputs)
    for one, other in zip(found, exact_gradients(inputs), strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other)


def test_what_hooks_bring_back_may_lie_otherwise():
    """Saved tensors may come back with other strides; with another shape they are an error."""
    inputs = leaves()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one.t().contiguous(), lambda one: one.t()):
        loss = loss_of(*inputs)
    for one, other in zip(torch.autograd.grad(loss, inputs), exact_gradients(inputs), strict=True):
        assert_close(one, other)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one[..., :-1].contiguous()):
        loss = loss_of(*inputs)
    with pytest.raises(RuntimeError, match=r"invalid gradient|shape|size"):
        torch.autograd.grad(loss, inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one if len(one) == C else one[:2]):
        loss = loss_of(*inputs)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        torch.autograd.grad(loss, inputs)


def test_where_no_gradient_is_wanted_none_is_made():
    inputs = leaves()
    value = loss_of(*inputs)
    with torch.no_grad():
        again = loss_of(*inputs)
    frozen = loss_of(*(leaf.detach() for leaf in inputs))
    assert [again.grad_fn, frozen.grad_fn] == [None, None]
    assert torch.equal(value, again)
    assert torch.equal(value, frozen)


def test_nothing_of_the_callers_is_written_to_and_bits_stay():
    inputs = leaves()
    before = [leaf.detach().clone() for leaf in inputs]
    first, again = (torch.autograd.grad(loss_of(*inputs), inputs) for _ in range(2))
    assert all(map(torch.equal, before, inputs))
    assert all(map(torch.equal, first, again))


def test_neither_cosines_nor_unit_rows_stay():
    """Between the passes there is one array of the size of the cosines: their gradient."""
    x, w = torch.randn(64, 512), torch.randn(500, 512, requires_grad=True)
    target, size = torch.zeros(64, dtype=torch.int64), 64 * 500 * 4
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = cosine_margin_cross_entropy(x, w, target, margin=MARGIN)
    changes = [event.self_cpu_memory_usage for event in seen.events()]
    assert size <= sum(changes) < 1.5 * size, (size, sum(changes))
    loss.backward()
