"""First and second derivatives of every function, and the ways in which autograd is used."""

from __future__ import annotations

import pytest
import torch
from helpers import classes_of, counts_of, normal
from scenes import C, N, all_scenes, feature_scenes, language_scenes, loss_scenes, row_scenes
from tolerances import assert_close, error
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lt_kernels import functional
from lt_kernels.functional import DBM, ArcFace

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

SCENES = all_scenes()


def leaves_of(name: str) -> tuple[Tensor, ...]:
    return tuple(leaf.clone().requires_grad_() for leaf in SCENES[name].leaves)


def numeric(name: str) -> bool:
    """Whether finite differences make sense: not of minus infinity, nor where norms count as constants."""
    return name != "repulsion fixed norms" and all(leaf.isfinite().all() for leaf in SCENES[name].leaves)


@pytest.mark.parametrize("name", [name for name in SCENES if numeric(name)])
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(SCENES[name].function, leaves_of(name), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in SCENES if numeric(name)])
def test_second_derivative_is_right_or_an_error(name: str) -> None:
    """Never a silent wrong value: the Hessian times a vector by central differences of the gradient."""
    function, leaves = SCENES[name].function, leaves_of(name)
    direction = [normal(*leaf.shape, seed=421 + i) for i, leaf in enumerate(leaves)]

    def slope(shift: float) -> list[Tensor]:
        moved = [(leaf + shift * step).detach().requires_grad_() for leaf, step in zip(leaves, direction, strict=True)]
        return list(torch.autograd.grad(function(*moved).sum(), moved))

    try:
        first = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
        inner = sum((slope * step).sum() for slope, step in zip(first, direction, strict=True))
        second = torch.autograd.grad(inner, leaves, allow_unused=True)
    except (RuntimeError, NotImplementedError) as problem:
        refused = str(problem)
    else:
        refused = ""
    if refused:
        assert "second" in refused or "twice" in refused or "double" in refused, refused
        return
    step = 1e-5
    expected = [(up - down) / (2 * step) for up, down in zip(slope(step), slope(-step), strict=True)]
    for found, exact in zip(second, expected, strict=True):
        found = torch.zeros_like(exact) if found is None else found
        assert error(found, exact) < 1e-6


@pytest.mark.parametrize("name", SCENES)
def test_func_grad_equals_backward(name: str) -> None:
    function, leaves = SCENES[name].function, leaves_of(name)
    every = tuple(range(len(leaves)))
    value = function(*leaves).sum()
    value.backward()
    found = torch.func.grad(lambda *leaves: function(*leaves).sum(), every)(*(leaf.detach() for leaf in leaves))
    for leaf, gradient in zip(leaves, found, strict=True):
        assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 1.5}, {"label_smoothing": 0.1}], ids=str)
def test_vmap_of_grad_by_row(options: dict[str, float]) -> None:
    """Gradients for each sample, from the function of one row."""
    logits, target = normal(N, C, seed=431), classes_of(N, C, 432)
    one = torch.func.grad(lambda z, y: functional.offset_cross_entropy(z, y, **options))
    leaf = logits.clone().requires_grad_()
    functional.offset_cross_entropy(leaf, target, reduction="sum", **options).backward()
    assert_close(torch.func.vmap(one)(logits, target), leaf.grad)


@pytest.mark.parametrize("name", [*row_scenes(), *feature_scenes(), *language_scenes()])
def test_vmap_of_grad_by_batch(name: str) -> None:
    """A stack of three problems at once equals the three one by one."""
    function, leaves = SCENES[name].function, SCENES[name].leaves
    stacked = tuple(torch.stack([leaf, 0.5 * leaf, -leaf.abs()]) for leaf in leaves)
    slope = torch.func.grad(lambda *leaves: function(*leaves).sum(), tuple(range(len(leaves))))
    found = torch.func.vmap(slope)(*stacked)
    for i in range(3):
        for whole, alone in zip(found, slope(*(leaf[i] for leaf in stacked)), strict=True):
            assert_close(whole[i], alone, name=f"{name} {i}")


@pytest.mark.parametrize("name", SCENES)
def test_frozen_inputs(name: str) -> None:
    """Each input alone gives the gradient that it gets beside the others; the others stay without."""
    leaves = leaves_of(name)
    function = SCENES[name].function
    whole = torch.autograd.grad(function(*leaves).sum(), leaves)
    for i, expected in enumerate(whole):
        alone = [leaf.detach().clone().requires_grad_(i == j) for j, leaf in enumerate(SCENES[name].leaves)]
        function(*alone).sum().backward()
        assert_close(alone[i].grad, expected)
        assert all(leaf.grad is None for j, leaf in enumerate(alone) if i != j)
    assert not function(*SCENES[name].leaves).requires_grad


def products(cosine: bool, **trained: bool) -> int:
    """Multiplications of all matrix products, forward and backward, of what is not so small that torch makes none."""
    rows = 40 if cosine else 2200
    target = classes_of(rows, 30, 433)
    leaves = {"input": normal(rows, 20, seed=434), "linear_weight": normal(30, 20, seed=435)}
    leaves = {key: leaf.requires_grad_(trained[key]) for key, leaf in leaves.items()}
    call = functional.cosine_margin_cross_entropy if cosine else functional.linear_cross_entropy
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as record:
        call(target=target, **leaves).backward()
    return sum(event.flops for event in record.key_averages() if event.key in ("aten::mm", "aten::addmm"))


@pytest.mark.parametrize("cosine", [False, True])
def test_frozen_inputs_save_the_work(cosine: bool) -> None:
    """A frozen backbone or a frozen classifier saves one matrix product."""
    one = 2 * (40 if cosine else 2200) * 30 * 20
    both = products(cosine, input=True, linear_weight=True)
    assert both >= 3 * one
    assert products(cosine, input=False, linear_weight=True) <= both - one
    assert products(cosine, input=True, linear_weight=False) <= both - one


@pytest.mark.parametrize("name", SCENES)
def test_backward_twice(name: str) -> None:
    leaves = leaves_of(name)
    value = SCENES[name].function(*leaves).sum()
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(value, leaves), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", SCENES)
def test_same_input_same_bits(name: str) -> None:
    """Twice, and with other inputs in between."""
    results = []
    for run in range(3):
        leaves = (
            leaves_of(name) if run != 1 else tuple((2 * leaf).detach().requires_grad_() for leaf in leaves_of(name))
        )
        value = SCENES[name].function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), leaves)))
    assert all(torch.equal(one, two) for one, two in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_at_a_size_that_is_shared_out(threads: int) -> None:
    torch.set_num_threads(threads)
    logits, target = normal(200, 1025, seed=436, dtype=torch.float32), classes_of(200, 1025, 437)
    features, weight = normal(200, 32, seed=438, dtype=torch.float32), normal(1025, 32, seed=439, dtype=torch.float32)
    margin = DBM(counts_of(1025, 440), 0.3)

    def everything() -> list[Tensor]:
        leaves = [leaf.clone().requires_grad_() for leaf in (logits, features, weight)]
        value = (
            functional.offset_cross_entropy(leaves[0], target, offset=logits[0], label_smoothing=0.1)
            + functional.cosine_margin_cross_entropy(leaves[1], leaves[2], target, margin=margin)
            + functional.logit_weight_repulsion(leaves[2], threshold=0.2)
            + functional.lade_regularizer(leaves[0], target, torch.ones(1025))
        )
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    assert all(torch.equal(one, two) for one, two in zip(everything(), everything(), strict=True))


def twisted(leaf: Tensor) -> Tensor:
    """The same numbers with other strides: every second element of a transposed, padded copy."""
    if leaf.dim() < 2:
        return torch.stack([leaf, leaf], -1)[..., 0]
    padded = torch.zeros(*leaf.shape[:-2], 2 * leaf.shape[-1], leaf.shape[-2], dtype=leaf.dtype)
    padded[..., ::2, :] = leaf.transpose(-1, -2)
    return padded.transpose(-1, -2)[..., ::2]


@pytest.mark.parametrize("name", SCENES)
def test_inputs_that_are_not_contiguous(name: str) -> None:
    function, leaves = SCENES[name].function, leaves_of(name)
    strange = tuple(twisted(leaf.detach()).requires_grad_() for leaf in leaves)
    assert not strange[0].is_contiguous()
    value, same = function(*leaves), function(*strange)
    assert_close(same, value)
    cotangent = torch.ones((), dtype=torch.float64).expand(value.shape)  # strides of zero
    expected, found = torch.autograd.grad(value, leaves, cotangent), torch.autograd.grad(same, strange, cotangent)
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two)


def test_loss_scenes_are_there() -> None:
    assert len(loss_scenes()) >= 10


def test_margins_under_anomaly_detection() -> None:
    """No hidden NaN on the way of the gradient."""
    leaves = [normal(6, 3, seed=443).requires_grad_(), normal(C, 3, seed=444).requires_grad_()]
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        functional.cosine_margin_cross_entropy(*leaves, classes_of(6, C, 445), margin=ArcFace(0.5)).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
