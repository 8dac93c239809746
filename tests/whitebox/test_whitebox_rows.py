"""The margins' phi, and the rows' statistics and slopes, on every instruction set of this machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import assert_close

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # as the kernels number them


def cosines(dtype):
    """From -1 to 1, dense at the ends, with a little more than 1."""
    close = np.exp(np.linspace(np.log(1e-17), np.log(1), 4001))
    ends = [0.0, -0.0, 1.0, -1.0, 1 + 1e-7, -1 - 1e-7, 1 + 1e-6, -1 - 1e-6, 5e-324]
    every = np.concatenate([np.linspace(-1, 1, 20_001), 1 - close, close - 1, close, -close, ends])
    return every.astype(dtype)


def angular(own, margin, hard, instance, guard):
    """cos(theta + m (1 + instance hard (1 - cos) / 2)) and its slope, from the angle itself."""
    c = np.clip(own.astype(np.longdouble), -1, 1)
    theta, turn = np.arccos(c), instance * margin * hard / 2
    angle = margin + turn * (1 - c)
    sine = np.sqrt((1 - c) * (1 + c))
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.sin(theta + angle) * (1 / sine + turn)
    beyond = guard & (theta + angle > np.pi)
    straight = c - angle * np.sin(angle), 1 + (np.sin(angle) + angle * np.cos(angle)) * turn
    edge = np.abs(theta + angle - np.pi) < 1e-3 if guard else np.zeros(len(own), bool)  # either form is right there
    return np.where(beyond, straight[0], np.cos(theta + angle)), np.where(beyond, straight[1], slope), sine, edge


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("margin", [0.0, 1e-4, 0.1, 0.5, 1.5, 2.0, 3.1, math.pi])
@pytest.mark.parametrize(("hard", "instance", "guard"), [(False, 1.0, True), (True, 1.0, False), (True, 0.7, True)])
def test_angular_phi(box, dtype, margin, hard, instance, guard):
    own, eps = cosines(dtype), float(np.finfo(dtype).eps)
    value, slope, norm_slope = box.angular(own, margin, hard, instance, guard)
    exact, exact_slope, sine, edge = angular(own, float(dtype(margin)), hard, float(dtype(instance)), guard)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    assert not norm_slope.any()
    assert np.abs(slope).max() <= 10 / math.sqrt(eps)
    assert np.abs(value - exact)[~edge].max() <= 16 * eps
    inside = (sine > 2 * math.sqrt(eps)) & ~edge  # at the ends the slope is held finite
    error = np.abs(slope - exact_slope)[inside] * sine[inside]  # the slope grows as 1 / sine
    assert error.max() <= 32 * eps
    if guard and not hard and 0 <= margin <= 2.3:  # beyond, the straight line starts above where the cosine ends
        assert (np.diff(value[np.argsort(own)]) >= -8 * eps).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 8, 15])
def test_sphere_phi(box, dtype, order):
    own, eps = cosines(dtype), float(np.finfo(dtype).eps)
    value, slope, norm_slope = box.sphere(own, order, np.ones_like(own))
    c = np.clip(own.astype(np.longdouble), -1, 1)
    theta = np.arccos(c)
    step = np.clip(np.floor(order * theta / np.pi), 0, order - 1)
    exact = (-1) ** step * np.cos(order * theta) - 2 * step
    sine = np.sqrt((1 - c) * (1 + c))
    with np.errstate(divide="ignore", invalid="ignore"):
        exact_slope = np.where(sine > 1e-6, (-1) ** step * order * np.sin(order * theta) / sine, order**2)
    assert np.isfinite([value, slope, norm_slope]).all()
    assert np.abs(value - exact).max() <= 4 * order**2 * eps
    # where two branches meet the slope is 0 on both sides, and it is a rounding that chooses
    assert np.abs(slope - exact_slope).max() <= 8 * order**4 * (eps + 1e-12)
    assert np.abs(norm_slope - (exact - c * exact_slope)).max() <= 16 * order**4 * (eps + 1e-12)
    for norm in (0.0, 1e-30, 7.5, 1e15):
        scaled = box.sphere((own * dtype(norm)).astype(dtype), order, np.full_like(own, norm))
        assert np.isfinite(scaled).all()
        if norm == 7.5:
            assert np.abs(scaled[0] / norm - exact).max() <= 8 * order**2 * eps
    for annealing in (0.5, 1000.0, 1e300):
        annealed = box.sphere(own, order, np.ones_like(own), annealing)
        share = 1 / (1 + annealing)
        mixed = (share * exact + (1 - share) * c, share * exact_slope + (1 - share), share * (exact - c * exact_slope))
        limit = 16 * order**4 * share * (eps + 1e-12) + 4 * eps
        assert max(np.abs(found - of).max() for found, of in zip(annealed, mixed)) <= limit


def test_slopes_are_those_of_finite_differences(box):
    own, h = np.linspace(-0.995, 0.995, 5001), 1e-6
    calls = [
        lambda x, m=m, hard=hard, guard=guard: box.angular(x, m, hard, 0.8, guard)
        for m in (0.1, 0.5, 1.2)
        for hard in (False, True)
        for guard in (False, True)
    ]
    calls += [lambda x, order=order: box.sphere(x, order, np.ones_like(x)) for order in (1, 2, 3, 4, 7)]
    for call in calls:
        numeric = (call(own + h)[0] - call(own - h)[0]) / (2 * h)
        slope = call(own)[1]
        jump = np.abs(call(own + h)[1] - call(own - h)[1]) > 1e-3 * (1 + np.abs(slope))  # the guard's corner
        assert jump.sum() <= 3
        assert np.abs(numeric - slope)[~jump].max() <= 2e-6 * (1 + np.abs(slope).max())
    norm, own = np.linspace(0.2, 5, 3001), 0.17
    for order in (1, 2, 4):
        ends = [box.sphere(np.full_like(norm, own), order, norm + side) for side in (-h, h)]
        numeric = (ends[1][0] - ends[0][0]) / (2 * h)
        assert np.abs(numeric - box.sphere(np.full_like(norm, own), order, norm)[2]).max() <= 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_loss_of_a_row_at_any_distance(box, dtype, gamma):
    """(1 - p)^gamma (-log p) and its slope where p is anything from 0 to 1 to the last bit."""
    size = np.finfo(dtype).max
    v = np.concatenate([np.linspace(-120, 120, 9601), [-size, size, -1e4, 1e4, -np.inf]]).astype(dtype)
    loss, d_rest, d_own, d_offset, d_norm, d_mean = box.margin_rows(v, np.zeros_like(v), gamma)
    wide = v.astype(np.longdouble)
    with np.errstate(over="ignore"):
        miss = np.where(v > 0, 1 / (1 + np.exp(-np.abs(wide))), np.exp(-np.abs(wide)) / (1 + np.exp(-np.abs(wide))))
    entropy = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    exact = miss**gamma * entropy
    steep = miss**gamma * (miss + gamma * np.where(np.isinf(entropy), 0, entropy) * (1 - miss))
    relative = 16 * float(np.finfo(dtype).eps) * (1 + gamma)
    smallest = float(np.finfo(dtype).smallest_normal)
    assert (np.abs(loss - exact) <= relative * exact + smallest).all()
    assert (np.abs(d_rest - steep) <= relative * (1 + 120 * gamma) * steep + smallest).all()
    assert (d_own == -d_rest).all()
    assert (d_offset == -d_rest).all()
    assert not d_norm.any()
    assert not d_mean.any()


def rows_scene(classes, slots, dtype, seed, rich):
    """Logits with targets at the ends of vectors and blocks; `rich`: scales, an offset with absent classes, shares."""
    rng = np.random.default_rng(seed)
    rows, kind = 4, np.float64 if dtype == torch.float64 else np.float32
    places = np.array(
        [0, classes - 1, classes // 2, 1023, 1024, 15, 16, -100, classes + 5]
    )  # the last is another shard's
    target = rng.choice(places, (rows, slots))
    scene = {
        "type": TYPES.index(dtype),
        "start": 0,
        "scale": 1.0,
        "target": target.astype(np.int64),
        "logits": torch.from_numpy(1.5 * rng.normal(size=(rows, classes))).to(dtype),
    }
    if rich:
        offset, share = rng.normal(size=(rows, classes)), rng.uniform(size=(1, classes))
        away = rng.uniform(size=(rows, classes)) < 0.1
        away[np.arange(rows)[:, None], np.clip(target, 0, classes - 1)] = False
        offset[away] = -np.inf
        share = np.where(away, 0, share)
        scene |= {"scale": 1.7, "offset": offset.astype(kind), "share": share.astype(kind)}
        scene |= {
            "row_scale": rng.uniform(0.5, 1, rows).astype(kind),
            "column_scale": rng.uniform(0.5, 1, classes).astype(kind),
        }
    for name, shape in (("d_rest", rows), ("d_own", (rows, slots)), ("d_own_offset", (rows, slots)), ("d_mean", rows)):
        if rich or name in ("d_rest", "d_own"):
            scene[name] = rng.normal(size=shape).astype(kind)
    return scene, kind


def exact_rows(scene):
    """The definition in float64, with what autograd makes of it."""
    wide = {key: torch.from_numpy(value).double() for key, value in scene.items() if isinstance(value, np.ndarray)}
    z = scene["logits"].double().requires_grad_()
    rows, classes = z.shape
    offset = wide.get("offset", torch.zeros(rows, classes, dtype=torch.float64)).requires_grad_()
    cosine = z * wide.get("row_scale", torch.ones(rows))[:, None] * wide.get("column_scale", torch.ones(classes))
    u = scene["scale"] * cosine + offset
    target = torch.from_numpy(scene["target"])
    here = (target >= 0) & (target < classes)
    counted = (target != -100).any(1) | (target.shape[1] == 0)
    mine = torch.zeros(rows, classes, dtype=torch.bool)
    for k in range(target.shape[1]):
        mine[here[:, k].nonzero()[:, 0], target[here[:, k], k]] = True
    out = mine | ~counted[:, None]
    others = u.masked_fill(out, -torch.inf)
    alone = (others.detach() == -torch.inf).all(1)
    rest = others.masked_fill(alone[:, None], 0.0).logsumexp(1).masked_fill(alone, -torch.inf)
    chosen = target.clamp(0, classes - 1)
    own = cosine.gather(1, chosen).masked_fill(~(here & counted[:, None]), -torch.inf)
    own_offset = offset.gather(1, chosen).masked_fill(~(here & counted[:, None]), 0.0)
    rival = cosine.detach().masked_fill(out | (offset.detach() == -torch.inf), -torch.inf).amax(1)
    share = wide.get("share", torch.zeros(1, classes)).expand(rows, classes)
    mean = (share * u.masked_fill(out | (share == 0), 0.0)).sum(1)
    total = sum(
        (wide[key].masked_fill(value == -torch.inf, 0.0) * value.masked_fill(value == -torch.inf, 0.0)).sum()
        for key, value in (("d_rest", rest), ("d_own", own), ("d_own_offset", own_offset), ("d_mean", mean))
        if key in wide
    )
    d_logits, d_offset = torch.autograd.grad(total, (z, offset), allow_unused=True)
    shares = share.masked_fill(out, 0.0).sum(1)
    return {"rest": rest, "own": own, "rival": rival, "mean": mean, "shares": shares}, d_logits, d_offset


def run_rows(box, isa, scene, kind):
    """All three kernels on the scene."""
    logits = scene["logits"]
    rows, classes = logits.shape
    view = {2: torch.int16}.get(logits.element_size(), logits.dtype)
    sizes = {"rest": rows, "own": scene["target"].shape, "rival": rows, "mean": rows, "top": rows, "shares": rows}
    out = {key: np.full(size, np.nan, kind) for key, size in sizes.items()}
    given = {**scene, "logits": logits.view(view).numpy()}
    outputs = {f"{key}_out": value for key, value in out.items() if key not in ("mean", "shares") or "share" in scene}
    box.run_rows(isa, {**given, **outputs})
    d_logits = torch.full_like(logits, torch.nan)
    d_offset = np.zeros((rows, classes), kind)
    offsets = {"d_offset": d_offset} if "offset" in scene else {}
    made = {"rest": out["rest"], "top": out["top"], "d_logits": d_logits.view(view).numpy()}
    box.run_rows(isa, {**given, **made, **offsets})
    top = np.where(out["top"] == -np.inf, 0, out["top"]).astype(np.float64)
    found = {**out, "rest": out["rest"] + top, "top": top}
    return {key: torch.from_numpy(value) for key, value in found.items()}, d_logits, torch.from_numpy(d_offset)


@pytest.mark.parametrize("rich", [False, True], ids=["plain", "rich"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_of_any_width(box, dtype, rich):
    """Ends of vectors and blocks, targets there, absent classes, nobody's targets: statistics and both gradients."""
    widths = [*range(1, 36), 63, 64, 65, 1023, 1024, 1025, 1040, 2049]
    for seed, (classes, slots) in enumerate((classes, slots) for classes in widths for slots in (0, 1, 2)):
        scene, kind = rows_scene(classes, slots, dtype, seed, rich)
        exact, exact_logits, exact_offset = exact_rows(scene)
        for isa in box.instruction_sets():
            name = f"{isa}, {classes} classes, {slots} targets: "
            found, d_logits, d_offset = run_rows(box, isa, scene, kind)
            for key in ("rest", "own", "rival"):
                assert_close(found[key], exact[key], found["own"].dtype, name + key)
            if "share" in scene:  # as the mean of numbers of size one
                mean = exact["mean"] - (found["top"] + 1) * exact["shares"]
                assert_close(found["mean"] - found["shares"], mean, name=name + "mean")
            assert_close(d_logits, exact_logits, name=name + "d_logits")
            if rich:
                assert_close(d_offset, exact_offset, name=name + "d_offset")


def plain_scene(classes, dtype, seed, tables):
    """Rows of plain logits, some ignored, one certain of its target and one of another class; with absent classes."""
    rng = np.random.default_rng(seed)
    rows, kind = 19, np.float64 if dtype == torch.float64 else np.float32
    target = rng.choice([0, classes - 1, classes // 2, min(15, classes - 1), -100], (rows, 1)).astype(np.int64)
    logits = 3 * rng.normal(size=(rows, classes))
    for row, lift in ((0, 50.0), (1, -50.0)):
        target[row] = classes // 3
        logits[row, target[row]] = lift
    scene = {"type": TYPES.index(dtype), "start": 0, "scale": 1.0, "divisor": 7.0, "target": target}
    scene["logits"] = torch.from_numpy(logits).to(dtype)
    if tables:
        away = rng.uniform(size=(1, classes)) < 0.2
        away[0, np.clip(target, 0, classes - 1)] = False
        scene["offset"] = np.where(away, -np.inf, rng.normal(size=(1, classes))).astype(kind)
        scene["weight"] = rng.uniform(0, 2, classes).astype(kind)
    return scene, kind


def exact_plain(scene):
    """Losses and the gradient of their sum over the divisor, in float64; exact where a target is certain."""
    z = scene["logits"].double().requires_grad_()
    classes = z.shape[1]
    target = torch.from_numpy(scene["target"])[:, 0]
    u = z + torch.from_numpy(scene.get("offset", np.zeros((1, classes)))).double()
    weight = torch.from_numpy(scene.get("weight", np.ones(classes))).double()
    chosen = target.clamp(min=0)[:, None]
    rest = u.scatter(1, chosen, -torch.inf)
    alone = (rest.detach() == -torch.inf).all(1)
    v = rest.masked_fill(alone[:, None], 0.0).logsumexp(1) - u.gather(1, chosen)[:, 0]
    loss = weight[chosen[:, 0]] * torch.nn.functional.softplus(v, threshold=1e9)
    loss = loss.masked_fill(alone | (target < 0), 0.0)
    (gradient,) = torch.autograd.grad(loss.sum() / scene["divisor"], z)
    return loss.detach(), gradient


@pytest.mark.parametrize("tables", [False, True], ids=["plain", "tables"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_short_plain_rows(box, dtype, tables):
    """Ends of vectors, groups and the block, targets there; losses and gradients each to its own size."""
    tight = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}[dtype]
    for seed, classes in enumerate([*range(1, 36), 63, 64, 65, 100, 127, 128, 341, 512, 1000, 1023, 1024]):
        scene, kind = plain_scene(classes, dtype, seed, tables)
        logits, (exact, exact_gradient) = scene["logits"], exact_plain(scene)
        view = {2: torch.int16}.get(logits.element_size(), logits.dtype)
        for isa in box.instruction_sets():
            for wanted in (True, False):
                losses, numbers = np.full(len(logits), np.nan, kind), np.full((6, len(logits)), np.nan, kind)
                gradient = torch.full_like(logits, torch.nan)
                out = {"losses": losses, "numbers": numbers}
                out |= {"d_logits": gradient.view(view).numpy()} if wanted else {}
                box.run_plain(isa, {**scene, "logits": logits.view(view).numpy(), **out})
                name = f"{isa}, {classes} classes"
                np.testing.assert_allclose(losses, exact, rtol=2e-5 if kind is np.float32 else 1e-12, err_msg=name)
                assert np.isfinite(numbers[2:]).all(), name
                if wanted:
                    close = torch.isclose(gradient.double(), exact_gradient, rtol=tight, atol=1e-7 * tight)
                    close |= (dtype == torch.float16) & (exact_gradient.abs() < 1e-4)  # steps of 2^-24
                    assert close.all(), (name, gradient[~close], exact_gradient[~close])
