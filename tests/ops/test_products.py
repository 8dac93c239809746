"""Large float32 products on a CPU: which library makes them, that they are right, and what uses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import memory_budget
from lt_kernels.functional import ArcFace, cosine_margin_cross_entropy, linear_cross_entropy
from lt_kernels.ops import directions, products, use_kernels
from lt_kernels.ops.backends import library

ROWS, CLASSES, FEATURES = 32, 1025, 512  # just above what is large
here = pytest.mark.skipif(not products.choice()[0], reason=f"torch's own products serve here: {products.choice()[1]}")


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    """float32 [rows, columns]; products of 512 such numbers are about 1."""
    return (normal(rows, columns, seed=seed) / 512**0.5).float()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes (rows, features, columns) of the products that oneDNN made."""
    made: list[tuple[int, ...]] = []
    inner = products._by_onednn

    def spied(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        made.append((*left.shape, right.shape[0]))
        return inner(left, right, bias)

    monkeypatch.setattr(products, "_by_onednn", spied)
    return made


def test_sizes_are_large() -> None:
    assert ROWS >= products.ROWS
    assert ROWS * CLASSES * FEATURES >= products.WORK
    assert ROWS * (CLASSES - 2) * FEATURES < products.WORK


def test_the_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instruction_set", lambda: "avx2")
    assert products.choice()[0] is False
    assert "AVX-512" in products.choice()[1]
    monkeypatch.setattr(library, "instruction_set", lambda: "avx512")
    monkeypatch.setattr(library, "intel", lambda: True)
    assert products.choice()[0] is False
    assert "Intel" in products.choice()[1]
    monkeypatch.setattr(library, "intel", lambda: False)
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert products.choice()[0] is False
    assert "oneDNN" in products.choice()[1] or "MKL" in products.choice()[1]


def test_intel_is_what_the_system_says() -> None:
    if not library.built():
        pytest.skip("the C++ extension, which looks, is not built")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            vendor = next(line for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        pytest.skip("the system does not tell the processor's vendor")
    assert library.intel() == ("GenuineIntel" in vendor)


@here
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_right(calls: list[tuple[int, ...]], bias: bool) -> None:
    """Of rows that lie apart too."""
    left, right = matrix(2 * ROWS, FEATURES + 3, 901)[::2, 3:], matrix(CLASSES, FEATURES, 902)
    added = matrix(1, CLASSES, 903)[0] if bias else None
    exact = F.linear(left.double(), right.double(), None if added is None else added.double())
    assert_close(products.linear(left, right, added), exact, torch.float32)
    assert calls == [(ROWS, FEATURES, CLASSES)]


@here
@pytest.mark.parametrize("bias", [matrix(CLASSES, 2, 940)[:, 0], matrix(1, 1, 941)[0].expand(CLASSES)])
def test_bias_that_lies_apart(calls: list[tuple[int, ...]], bias: Tensor) -> None:
    left, right, target = matrix(ROWS, FEATURES, 942), matrix(CLASSES, FEATURES, 943), classes_of(ROWS, CLASSES, 944)
    assert bias.stride() != (1,)
    assert_close(
        products.linear(left, right, bias), F.linear(left.double(), right.double(), bias.double()), torch.float32
    )
    exact = F.cross_entropy(F.linear(left.double(), right.double(), bias.double()), target)
    assert_close(linear_cross_entropy(left, right, target, linear_bias=bias), exact, torch.float32)
    assert len(calls) == 2


@here
def test_product_is_right(calls: list[tuple[int, ...]]) -> None:
    """A transposed left side goes to torch's own."""
    left, right = matrix(ROWS, CLASSES, 904), matrix(CLASSES, FEATURES, 905)
    assert_close(products.product(left, right), left.double() @ right.double(), torch.float32)
    assert calls == [(ROWS, CLASSES, FEATURES)]
    transposed = matrix(CLASSES, ROWS, 906).T
    assert_close(products.product(transposed, right), transposed.double() @ right.double(), torch.float32)
    assert len(calls) == 1


@here
@pytest.mark.parametrize(
    "left, right",
    [
        (matrix(ROWS, FEATURES, 907), matrix(CLASSES - 2, FEATURES, 908)),
        (matrix(products.ROWS - 1, FEATURES, 909), matrix(8 * CLASSES, FEATURES, 910)),
        (matrix(ROWS, FEATURES, 911).double(), matrix(CLASSES, FEATURES, 912).double()),
        (matrix(ROWS, FEATURES, 913).bfloat16(), matrix(CLASSES, FEATURES, 914).bfloat16()),
        (matrix(ROWS, FEATURES, 931), matrix(CLASSES, FEATURES + 3, 932)[:, 3:]),  # oneDNN takes seconds for these
        (matrix(ROWS, FEATURES, 933), matrix(CLASSES, 2 * FEATURES, 934)[:, ::2]),
    ],
    ids=["few", "few rows", "float64", "bfloat16", "classes apart", "features apart"],
)
def test_all_others_are_torchs(calls: list[tuple[int, ...]], left: Tensor, right: Tensor) -> None:
    assert torch.equal(products.linear(left, right), F.linear(left, right))
    assert torch.equal(products.product(left, right.T), left @ right.T)
    assert calls == []


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 8), (8, 3), (17, 41), (64, 130), (300, 1100)])
def test_transposed(rows: int, columns: int) -> None:
    """To the bit, and beside it nothing changes."""
    if not library.built():
        pytest.skip("the C++ extension, which transposes, is not built")
    made, before = matrix(rows, columns, 935), matrix(columns, rows + 5, 936)
    out = before.clone()
    library.transpose(made, out[:, 2 : 2 + rows])
    assert torch.equal(out[:, 2 : 2 + rows], made.T)
    assert torch.equal(out[:, :2], before[:, :2])
    assert torch.equal(out[:, 2 + rows :], before[:, 2 + rows :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows, columns", [(0, 3), (1, 1), (5, 16), (40, 33), (300, 130)])
@pytest.mark.parametrize("dense", [True, False])
def test_gradients_without_their_part_along_a_row(rows: int, columns: int, dtype: torch.dtype, dense: bool) -> None:
    """Of contiguous rows of one dtype by the C++ kernel; a row without a direction keeps its gradient."""
    wide = normal(rows, 2 * columns, seed=1).to(dtype)
    line = wide[:, :columns].contiguous() if dense else wide[:, ::2]
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    gradient, scale = normal(rows, columns, seed=2).to(sums), 1 / line.to(sums).norm(dim=1)
    scale[:1] = 0
    exact = gradient.double() - (gradient.double() * line.double()).sum(1, True) * (scale.double()[:, None] ** 2 * line)
    directions.project(gradient, line, scale)
    assert_close(gradient, exact.to(sums), sums)


@here
@pytest.mark.parametrize("classes", [600, 1100])
def test_gradient_of_the_weights_transposed(calls: list[tuple[int, ...]], classes: int) -> None:
    """Many rows of few features in slabs of classes and of rows: features are transposed once where it is faster."""
    rows, features = 1024, 64
    target, leaves = classes_of(rows, classes, 937), [matrix(rows, features, 938), matrix(classes, features, 939)]
    found = []
    for kind in (torch.float32, torch.float64):
        own = [(8 * leaf).to(kind).requires_grad_() for leaf in leaves]
        with memory_budget(rows * classes * own[0].element_size()):
            loss = linear_cross_entropy(*own, target)
            found.append((loss, *torch.autograd.grad(loss, own)))
    for mine, exact in zip(*found, strict=True):
        assert_close(mine, exact, torch.float32)
    expected = (
        [(features, rows, 550)] * 2 if classes > rows else [(features, 512, 600)]
    )  # what is added up is not transposed
    assert [call for call in calls if call[0] == features] == expected


@here
@pytest.mark.parametrize("shape", [(128, 1100, 128), (1024, 9000, 64)], ids=["few rows", "beyond the cache"])
def test_transposes_where_it_is_faster(shape: tuple[int, int, int]) -> None:
    rows, classes, features = shape
    assert products.faster_transposed(torch.empty(1024, 1100), torch.empty(1024, 64))
    assert not products.faster_transposed(torch.empty(rows, classes), torch.empty(rows, features))
    assert not products.faster_transposed(torch.empty(1100, 1024).T, torch.empty(1024, 64))  # transposed already


def losses(input: Tensor, linear_weight: Tensor, target: Tensor) -> dict[str, Any]:
    """The ways from features to a loss."""
    leaves = (input, linear_weight, target)
    small = ROWS * CLASSES * input.element_size() // 2  # bytes that do not hold the logits

    def slabs(**options: Any) -> Tensor:
        with memory_budget(small):
            return linear_cross_entropy(*leaves, **options)

    margin = ArcFace(0.3)
    return {
        "whole": lambda: linear_cross_entropy(*leaves),
        "bias": lambda: linear_cross_entropy(*leaves, linear_bias=torch.zeros(CLASSES, dtype=input.dtype)),
        "focal": lambda: linear_cross_entropy(*leaves, focal_gamma=1.5),
        "smoothed": lambda: linear_cross_entropy(*leaves, label_smoothing=0.1),
        "slabs": slabs,
        "cosine": lambda: cosine_margin_cross_entropy(*leaves, margin=margin, scale=8.0),
    }


@here
@pytest.mark.parametrize("name", ["whole", "bias", "focal", "smoothed", "slabs", "cosine"])
def test_every_way_to_a_loss(calls: list[tuple[int, ...]], name: str) -> None:
    """Each makes its large products there, and errs no more than with torch's own, but for the tolerance."""
    target = classes_of(ROWS, CLASSES, 915)
    leaves = [4 * matrix(ROWS, FEATURES, 916), 4 * matrix(CLASSES, FEATURES, 917)]

    def found(kind: torch.dtype) -> list[Tensor]:
        own = [leaf.to(kind).requires_grad_() for leaf in leaves]
        loss = losses(*own, target)[name]()
        return [loss, *torch.autograd.grad(loss, own)]

    mine, exact = found(torch.float32), found(torch.float64)
    assert len(calls) >= (0 if name == "slabs" else 2)  # half of the classes are not large any more
    with use_kernels("reference"):
        torchs = found(torch.float32)
    for ours, theirs, truth in zip(mine, torchs, exact, strict=True):
        assert error(ours, truth) <= error(theirs, truth) + TOLERANCE[torch.float32]
    assert torch.equal(mine[0], losses(*leaves, target)[name]())  # without a graph


@here
def test_reference_is_torch_alone(calls: list[tuple[int, ...]]) -> None:
    leaves = [matrix(ROWS, FEATURES, 918).requires_grad_(), matrix(CLASSES, FEATURES, 919).requires_grad_()]
    with use_kernels("reference"):
        torch.autograd.grad(linear_cross_entropy(*leaves, classes_of(ROWS, CLASSES, 920)), leaves)
    assert calls == []


@here
def test_slabs_add_up(calls: list[tuple[int, ...]]) -> None:
    """Parts of the input's gradient that are large themselves."""
    classes = 2 * CLASSES
    target, leaves = classes_of(ROWS, classes, 921), [matrix(ROWS, FEATURES, 922), matrix(classes, FEATURES, 923)]
    found = []
    for kind in (torch.float32, torch.float64):
        own = [leaf.to(kind).requires_grad_() for leaf in leaves]
        with memory_budget(2 * ROWS * CLASSES * own[0].element_size()):  # two slabs, one after the other
            loss = cosine_margin_cross_entropy(*own, target, scale=8.0)
            found.append((loss, *torch.autograd.grad(loss, own)))
    for mine, exact in zip(*found, strict=True):
        assert_close(mine, exact, torch.float32)
    assert calls.count((ROWS, FEATURES, CLASSES)) == 4  # two slabs of classes, twice
    assert calls.count((ROWS, CLASSES, FEATURES)) == 2


def test_graph_of_linear() -> None:
    """`products.Linear` is F.linear, once and twice differentiated; frozen inputs get nothing."""
    leaves = [normal(*size, seed=924 + k).requires_grad_() for k, size in enumerate([(4, 3), (5, 3), (5,)])]
    assert torch.autograd.gradcheck(products.Linear.apply, leaves)
    assert torch.autograd.gradgradcheck(products.Linear.apply, leaves)
    for frozen in range(3):
        some = [leaf.detach().requires_grad_(k != frozen) for k, leaf in enumerate(leaves)]
        products.Linear.apply(*some).square().sum().backward()
        assert [leaf.grad is None for leaf in some] == [k == frozen for k in range(3)]
