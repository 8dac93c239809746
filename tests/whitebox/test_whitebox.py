"""The vector internals of every instruction set of this machine: exp, 16-bit numbers, sums, merged log-sum-exps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

CHUNK = 2**18  # numbers whose truth stays in the cache
NAN, INF = 0x7FC00000, float("inf")
EXP, LOG, LOG_ONE = range(3)


def bits_of(value):
    return int(np.float32(value).view(np.uint32))


def floats(first, count, stride=1):
    return (np.uint32(first) + np.arange(count, dtype=np.uint32) * np.uint32(stride)).view(np.float32)


# Every float32 by its bits: [first, last), and what exp is there; None: the exponential itself, nearly.
TINY, MOST, LEAST, SIGN = 0x33000000, bits_of(88.72283), bits_of(-86.98), 0x80000000
SEGMENTS = [
    (0, TINY, 1.0),  # below 2^-25 in size
    (TINY, MOST + 1, None),
    (MOST + 1, 0x7F800001, INF),
    (0x7F800001, SIGN, float("nan")),
    (SIGN, SIGN + TINY, 1.0),
    (SIGN + TINY, LEAST + 1, None),
    (LEAST + 1, 0xFF800001, 0.0),
    (0xFF800001, 2**32, float("nan")),
]


def pieces(size):
    """The segments in pieces of at most `size`, so that workers share them."""
    return [
        pytest.param(start, min(start + size, last), wanted, id=f"{start:08x}-{wanted}")
        for first, last, wanted in SEGMENTS
        for start in range(first, last, size)
    ]


def test_the_segments_are_all_of_float32():
    assert [first for first, _, _ in SEGMENTS] == [0, *(last for _, last, _ in SEGMENTS[:-1])]
    assert SEGMENTS[-1][1] == 2**32
    with np.errstate(over="ignore"):
        edge = np.exp(floats(MOST, 2).astype(np.float64)).astype(np.float32)
    assert np.isfinite(edge[0])
    assert np.isinf(edge[1])
    assert np.exp(np.float64(floats(LEAST, 1)[0])) < 2 * np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize(("first", "last", "wanted"), pieces(2**28))
def test_exp_of_every_float(box, first, last, wanted):
    """All 2^32 of them: 1.02 units in the last place at most, and exactly 0, 1, infinity and NaN where due."""
    if wanted is not None:
        others = {isa: box.exp_others(isa, first, 1, last - first, wanted) for isa in box.instruction_sets()}
        assert set(others.values()) == {0}, others
        return
    worst = dict.fromkeys(box.instruction_sets(), (0.0, first))
    for start in range(first, last, CHUNK):
        truth = np.exp(floats(start, min(CHUNK, last - start)).astype(np.float64))
        for isa, found in worst.items():
            mine = box.worst(isa, EXP, start, 1, truth)
            worst[isa] = found if mine[0] <= found[0] else mine  # NaN counts as larger
    assert all(error <= 1.02 for error, _ in worst.values()), {isa: (e, hex(b)) for isa, (e, b) in worst.items()}


def test_exp_of_float_by_numpy_alone(box):
    """The C++ measure of the sweep agrees with numpy's; instruction sets differ by a unit in the last place."""
    x = np.concatenate([floats(bits_of(1e-3), 4099, 66_001), -floats(bits_of(1e-3), 4099, 66_001)])
    x = x[(x <= 88.7) & (x >= -86.9)]
    truth = np.exp(x.astype(np.float64))
    found = {isa: box.exp(isa, x) for isa in box.instruction_sets()}
    for isa, value in found.items():
        error = np.abs(value - truth) / np.spacing(truth.astype(np.float32)).astype(np.float64)
        assert error.max() <= 1.02, isa
        measured = max(box.worst(isa, EXP, int(one.view(np.uint32)), 1, t[None])[0] for one, t in zip(x, truth))
        assert measured == pytest.approx(error.max(), rel=1e-3)
        assert np.abs(value.view(np.int32) - found["generic"].view(np.int32)).max() <= 1


def doubles():
    """Random numbers, and those around the places where the reduction by ln 2 changes its integer."""
    rng = np.random.default_rng(0)
    steps = np.arange(-1021, 1024)[:, None] * np.log(2) / 2 + np.array([-1e-9, -1e-13, 0, 1e-13, 1e-9])
    spread = rng.choice([-1, 1], 2**17) * np.exp(rng.uniform(np.log(1e-300), np.log(700), 2**17))
    return np.concatenate([rng.uniform(-708.04, 709.78, 2**19), steps.ravel(), spread, [-708.04, 709.782712893]])


@pytest.mark.skipif(np.finfo(np.longdouble).precision < 18, reason="numpy has no wider number than float64 here")
def test_exp_of_double(box):
    x = doubles()
    truth = np.exp(x.astype(np.longdouble))
    for isa in box.instruction_sets():
        error = np.abs(box.exp(isa, x) - truth) / np.spacing(truth.astype(np.float64))
        assert error.max() <= 1.1, (isa, float(error.max()), x[error.argmax()])
        ends = np.array([0.0, -0.0, -np.inf, np.inf, np.nan, -708.05, -1e300, 709.79, 1e300, 5e-324, -np.nan])
        wanted = np.array([1.0, 1.0, 0.0, np.inf, np.nan, 0.0, 0.0, np.inf, np.inf, 1.0, np.nan])
        np.testing.assert_array_equal(box.exp(isa, ends), wanted)


def swept(box, function, truth_of, first, last, stride):
    """The largest error, in units of the last place, of every stride-th float from `first` to `last`, on each set."""
    worst = dict.fromkeys(box.instruction_sets(), (0.0, 0))
    for start in range(first, last, CHUNK * stride):
        truth = truth_of(floats(start, min(CHUNK, -(-(last - start) // stride)), stride).astype(np.float64))
        for isa, found in worst.items():
            worst[isa] = max(found, box.worst(isa, function, start, stride, truth))
    return worst


@pytest.mark.parametrize(
    ("function", "truth", "first", "last", "stride"),
    [
        pytest.param(LOG, np.log, bits_of(1.0), bits_of(2.0), 1, id="log to 2"),
        pytest.param(LOG, np.log, bits_of(2.0), bits_of(1024.0), 7, id="log to a block's width"),
        pytest.param(LOG, np.log, bits_of(1024.0), 0x7F800000, 101, id="log of more"),
        pytest.param(LOG_ONE, np.log1p, 0x00800000, bits_of(2.0**-13), 101, id="log(1 + x) of little"),
        pytest.param(LOG_ONE, np.log1p, bits_of(2.0**-13), bits_of(1.0) + 1, 7, id="log(1 + x)"),
    ],
)
def test_logarithms_of_floats(box, function, truth, first, last, stride):
    """Within two units in the last place; a stride is odd, so that it meets every place of a vector."""
    worst = swept(box, function, truth, first, last, stride)
    assert all(error <= 2 for error, _ in worst.values()), {isa: (e, hex(b)) for isa, (e, b) in worst.items()}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ends_of_the_logarithms(box, kind):
    ends = np.array([1.0, np.inf, np.nan, np.finfo(kind).max], kind)
    for isa in box.instruction_sets():
        found = box.log(isa, ends)
        np.testing.assert_array_equal(found[:3], np.array([0.0, np.inf, np.nan], kind))
        assert found[3] == pytest.approx(np.log(np.finfo(kind).max), rel=2 * float(np.finfo(kind).eps))
        np.testing.assert_array_equal(box.log_one(isa, np.array([0.0, np.nan], kind)), np.array([0.0, np.nan], kind))


@pytest.mark.skipif(np.finfo(np.longdouble).precision < 18, reason="numpy has no wider number than float64 here")
def test_logarithms_of_doubles(box):
    rng = np.random.default_rng(0)
    more = np.concatenate([1 + rng.uniform(0, 1, 2**18), np.exp(rng.uniform(0, 700, 2**18)), 1 + 2.0 ** -np.arange(52)])
    less = np.concatenate([rng.uniform(0, 1, 2**18), np.exp(-rng.uniform(0, 700, 2**18)), [1.0]])
    for isa in box.instruction_sets():
        for found, truth in (
            (box.log(isa, more), np.log(more.astype(np.longdouble))),
            (box.log_one(isa, less), np.log1p(less.astype(np.longdouble))),
        ):
            error = np.abs(found - truth) / np.spacing(truth.astype(np.float64))
            assert error.max() <= 2, (isa, float(error.max()))


HALVES = [(0, torch.bfloat16), (1, torch.float16)]


@pytest.mark.parametrize(("half", "dtype"), HALVES)
def test_loads_of_every_half(box, half, dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    wanted = torch.from_numpy(patterns.view(np.int16).copy()).view(dtype).float().numpy()
    for isa in box.instruction_sets():
        found = box.load(isa, half, patterns)
        same = (found.view(np.int32) == wanted.view(np.int32)) | (np.isnan(found) & np.isnan(wanted))
        assert same.all(), (isa, patterns[~same][:5])


def neighbourhoods(dtype):
    """Every half, the middle between it and the next one, and three floats on each side of both."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    step = torch.finfo(dtype)
    finite = every[every.isfinite()]
    up = torch.nextafter(finite.to(dtype), torch.tensor(torch.inf, dtype=dtype)).float()
    above = torch.tensor([step.max * (1 + step.eps / 4), step.max, 65519.996, 65520.0])  # where rounding overflows
    places = torch.cat([every, torch.where(up.isfinite(), finite / 2 + up / 2, finite), above, -above])
    return torch.cat([(places.view(torch.int32) + shift).view(torch.float32) for shift in range(-3, 4)])


@pytest.mark.parametrize(("half", "dtype"), HALVES)
def test_stores_round_as_torch_does(box, half, dtype):
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (2**22,), generator=generator).to(torch.int32).view(torch.float32)
    moderate = torch.randn(2**20, generator=generator) * torch.exp(6 * torch.randn(2**20, generator=generator))
    for x in (neighbourhoods(dtype), anything, moderate):
        wanted = x.to(dtype)
        for isa in box.instruction_sets():
            found = torch.from_numpy(box.store(isa, half, x.numpy()).view(np.int16).copy())
            same = (found == wanted.view(torch.int16)) | (found.view(dtype).isnan() & wanted.isnan())
            assert bool(same.all()), (isa, x[~same][:5], found.view(dtype)[~same][:5], wanted[~same][:5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sum_and_largest_of_a_vector(box, dtype):
    rng = np.random.default_rng(0)
    for isa in box.instruction_sets():
        width = box.width(isa) // (dtype(0).itemsize // 4)
        for lane in range(width):
            x = rng.normal(size=width).astype(dtype)
            x[lane] = 100
            total, top = box.sum_and_largest(isa, x)
            assert top == 100
            assert total == pytest.approx(x.sum(dtype=np.float64), rel=4 * float(np.finfo(dtype).eps))
            assert box.sum_and_largest(isa, np.where(np.arange(width) == lane, x, -np.inf).astype(dtype)) == (
                -np.inf,
                100,
            ) or (width == 1)
        assert np.isnan(box.sum_and_largest(isa, np.full(width, np.nan, dtype))[0])


def cuts(size, rng):
    """Any blocks of at most 1024 that make up `size`; empty ones too."""
    sizes = []
    while sum(sizes) < size:
        sizes.append(int(min(rng.choice([0, 1, 2, 15, 16, 17, 31, 33, 200, 1024]), size - sum(sizes))))
    return sizes


def log_sum_exp(u):
    """In float64, of what the vector holds."""
    top = u.max()
    with np.errstate(over="ignore"):  # as far below the top as it gets
        return top if np.isinf(top) else top + np.log(np.exp(u.astype(np.float64) - top).sum())


def vectors(dtype, rng):
    """Common, far apart, huge, rising and falling numbers, and with -inf in some or all places."""
    largest = np.finfo(dtype).max
    normal = rng.normal(size=3000)
    yield from (normal, 50 * normal, 1e4 * normal, np.sort(80 * normal), np.sort(80 * normal)[::-1], normal[:1])
    yield from (largest * np.tanh(normal), np.full(1500, largest), np.full(1500, -largest), np.full(1500, -np.inf))
    yield np.where(rng.uniform(size=3000) < 0.9, -np.inf, 20 * normal)
    yield np.concatenate([np.full(1200, -np.inf), normal[:40], np.full(1200, -np.inf)])
    yield np.concatenate([np.full(100, -np.inf), [-largest], np.full(100, -np.inf), [largest]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_blocks_merge_to_the_whole(box, dtype):
    rng = np.random.default_rng(0)
    eps = float(np.finfo(dtype).eps)
    for values in vectors(dtype, rng):
        u = values.astype(dtype)
        exact = log_sum_exp(u)
        for _ in range(20):
            sizes = cuts(len(u), rng)
            for isa in box.instruction_sets():
                found = box.merge(isa, u, sizes)
                assert found == exact or abs(found - exact) <= 8 * eps * max(1, abs(exact)), (isa, sizes, found, exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_not_lost_in_a_merge(box, dtype):
    for place in (0, 5, 40, 99):
        u = np.zeros(100, dtype)
        u[place] = np.nan
        for isa in box.instruction_sets():
            assert np.isnan(box.merge(isa, u, [30, 30, 40]))


def test_transposing_on_every_instruction_set(box):
    for isa in box.instruction_sets():
        for c, d, begin in ((1, 1, 0), (5, 3, 1), (8, 8, 4), (13, 9, 4), (21, 30, 0)):
            rows, out = np.arange(c * d, dtype=np.float32).reshape(c, d), np.full((d, c + 2), np.float32(-1))
            box.transpose(isa, rows, out, begin, c)
            assert (out[:, begin:c] == rows.T[:, begin:]).all()
            assert (out[:, :begin] == -1).all()
            assert (out[:, c:] == -1).all()
