"""memory_budget and use_kernels in threads, generators, out of order, as decorators, under a compiler."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lt_kernels import functional, memory_budget
from lt_kernels.ops import linear_policy, use_kernels

ROWS, CLASSES = torch.zeros(64, 8), torch.zeros(96, 8)
WHOLE = 64 * 96 * 4


def held() -> int:
    """Logits that a linear loss, called here and now, holds at a time."""
    policy = linear_policy(ROWS, CLASSES)
    return policy.row_slab * policy.class_slab


def after(body) -> int:
    """`held` in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).result()


DEFAULT = held()


def test_overlapping_contexts_of_two_threads():
    """Each thread has its own, and what it had before afterwards; first in, first out."""
    entered, left, found = threading.Event(), threading.Event(), {}

    def other():
        with memory_budget(800):
            found["within"] = held()
            entered.set()
            left.wait(60)
            found["after the first one left"] = held()
        found["afterwards"] = held()

    with ThreadPoolExecutor(1) as pool:
        with memory_budget(400):
            done = pool.submit(other)
            assert entered.wait(60)
            assert held() == 50
        assert held() == DEFAULT
        left.set()
        done.result()
    assert held() == DEFAULT
    assert found == {"within": 64, "after the first one left": 64, "afterwards": DEFAULT}


def test_other_threads_keep_the_default():
    with memory_budget(400):
        assert after(held) == DEFAULT
        assert held() == 50


def test_nested_contexts_exceptions_and_one_that_serves_again():
    twice = memory_budget(800)
    with twice, memory_budget(400):
        assert held() == 50
        with twice:
            assert held() == 64
        assert held() == 50
    with pytest.raises(KeyError), memory_budget(400):
        raise KeyError
    assert held() == DEFAULT
    with twice:
        assert held() == 64
    assert held() == DEFAULT


def test_generators_end_in_any_order():
    def within(size):
        with memory_budget(size):
            yield held()

    first, second = within(400), within(800)
    assert next(first) == 50
    assert next(second) == 64
    first.close()
    assert held() == 64
    second.close()
    assert held() == DEFAULT
    elsewhere = within(400)
    assert after(lambda: next(elsewhere)) == 50
    elsewhere.close()  # in another thread than it was entered in
    assert held() == DEFAULT


def test_a_decorator_counts_for_each_call():
    @memory_budget(400)
    def small(depth):
        return [held(), *(small(depth - 1) if depth else [])]

    assert small(2) == [50, 50, 50]
    assert held() == DEFAULT
    assert small.__name__ == "small"

    def later():
        yield held()

    async def much_later():
        return held()

    for body in (later, much_later):
        with pytest.raises(TypeError, match=r"memory_budget cannot decorate.*runs later"):
            memory_budget(400)(body)


def test_the_backward_pass_keeps_to_the_budget_of_the_forward():
    """Slabs that the forward chose: in whichever thread and context the backward runs, the same bits."""
    weight, rows = torch.randn(96, 8), torch.randn(64, 8)
    target = torch.randint(0, 96, (64,))

    def slope(context):
        leaf = weight.clone().requires_grad_()
        with memory_budget(800):
            loss = functional.linear_cross_entropy(rows, leaf, target)
        with context:
            after(loss.backward)
        return leaf.grad

    assert torch.equal(slope(memory_budget(WHOLE)), slope(memory_budget(16)))


def test_integers_of_numpy_are_integers_and_nothing_else_is():
    for size in (np.int64(400), np.uint8(200), np.array(400), 2**70):
        with memory_budget(size):
            expected = {200: 25, 400: 50}.get(int(size), 64 * 96)
            assert held() == expected
    for wrong in (0, -1, 1.5, 4e6, "64", None, True, np.float32(400), np.bool_(True), np.array([400, 1])):
        with pytest.raises((ValueError, TypeError)):
            memory_budget(wrong)


def test_a_budget_beyond_any_memory_holds_everything():
    target = torch.zeros(64, dtype=torch.int64)
    with memory_budget(2**70):
        loss = functional.linear_cross_entropy(torch.randn(64, 8), torch.randn(96, 8), target)
    assert loss.isfinite()


def test_a_budget_of_no_logit_warns():
    with pytest.warns(UserWarning, match=r"memory_budget\(1\).*one by one"), memory_budget(1):
        assert held() == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, as it compiles
@pytest.mark.parametrize("form", ["around", "inside", "decorator"])
def test_under_a_compiler_without_a_break(form):
    torch.compiler.reset()
    x, w = torch.randn(40, 8, requires_grad=True), torch.randn(90, 8)
    y = torch.randint(0, 90, (40,))

    def plain(x, w):
        return functional.linear_cross_entropy(x, w, y)

    def inside(x, w):
        with memory_budget(4096):
            return functional.linear_cross_entropy(x, w, y)

    function = {"around": plain, "inside": inside, "decorator": memory_budget(4096)(plain)}[form]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with memory_budget(2048):
        assert torch.allclose(compiled(x, w), plain(x, w), rtol=1e-5)
    assert torch.allclose(compiled(x, w), plain(x, w), rtol=1e-5)


def serving() -> str:
    """Which wing serves, by what the kernels name in their complaint about a target."""
    try:
        torch.ops.lt_kernels.columns_forward(torch.zeros(2, 3), torch.tensor([0, 3]), None)
    except IndexError:
        return "reference"
    except RuntimeError:
        return "compiled"
    return "none"


BOTH = pytest.mark.skipif(serving() != "compiled", reason="the C++ extension is not built here")


@BOTH
def test_the_innermost_wing_serves():
    with use_kernels("reference"):
        assert serving() == "reference"
        with use_kernels("compiled"):
            assert serving() == "compiled"
            with use_kernels("reference"):
                assert serving() == "reference"
            assert serving() == "compiled"
        assert serving() == "reference"
    assert serving() == "compiled"
    first, second = use_kernels("reference"), use_kernels("compiled")
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert serving() == "compiled"
    second.__exit__(None, None, None)
    assert serving() == "compiled"


@BOTH
def test_a_second_thread_cannot_choose_another_wing():
    def other():
        with pytest.raises(RuntimeError, match=r"use_kernels\('compiled'\) counts for the whole process"):
            use_kernels("compiled").__enter__()

    with use_kernels("reference"):
        after(other)
        assert serving() == "reference"
        assert after(serving) == "reference"
    assert serving() == "compiled"
