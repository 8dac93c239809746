"""Heads that sample their classes: who is there, what the loss is over them, and what it is on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import losses
from lt_kernels.core.linear import Normalize
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.ops.loss import evaluate
from lt_kernels.ops.sources import features as make_source

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),  # torch's compiler
]

N, C, D = 12, 40, 6
COUNTS = counts_of(C, seed=1)
WEIGHT = normal(C, seed=2).exp()
OFFSET = normal(C, seed=3)
SMOOTHING = normal(C, seed=4).sigmoid()
FEATURES = normal(N, D, seed=5)
TARGET = classes_of(N, 9, seed=6)  # nine positives at most
IGNORED = TARGET.masked_fill(torch.arange(N) % 4 == 1, 3)
MIXED = MixedTarget(TARGET, classes_of(N, 7, seed=7), normal(N, seed=8).sigmoid())
Make = Callable[..., LinearHead | CosineHead]
# A head by its options.
HEADS: dict[str, Make] = {
    "plain": lambda **given: LinearHead(D, C, losses.CrossEntropyLoss(), **given),
    "bias, weight, offset": lambda **given: LinearHead(D, C, losses.Loss(weight=WEIGHT, offset=OFFSET), **given),
    "smoothing": lambda **given: LinearHead(D, C, losses.CrossEntropyLoss(label_smoothing=0.2), bias=False, **given),
    "smoothing by class": lambda **given: LinearHead(
        D, C, losses.Loss(weight=WEIGHT, offset=OFFSET, label_smoothing=SMOOTHING), **given
    ),
    "capped": lambda **given: LinearHead(D, C, losses.Loss(offset=OFFSET, z_loss=0.2, softcap=1.5), **given),
    "focal": lambda **given: CosineHead(D, C, losses.FocalLoss(2.0, WEIGHT), **given),
    "counts of the batch": lambda **given: LinearHead(D, C, losses.ARBLoss(counts="batch"), **given),
    "ldam": lambda **given: CosineHead(D, C, losses.LDAMLoss(COUNTS, weight=WEIGHT), **given),
    "dbm": lambda **given: CosineHead(D, C, losses.DBMLoss(COUNTS, 0.4, base="bs"), **given),
    "arcface": lambda **given: CosineHead(D, C, losses.ArcFaceLoss(scale=8.0), **given),
    "sphereface": lambda **given: CosineHead(D, C, losses.SphereFaceLoss(annealing=0.5), **given),
    "ignored": lambda **given: LinearHead(D, C, losses.Loss(weight=WEIGHT, ignore_index=3), **given),
    "of rows": lambda **given: LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS, reduction="none"), **given),
}


def target_of(name: str) -> Tensor:
    """The rows' classes, some ignored."""
    return {"ignored": IGNORED, "focal": IGNORED.masked_fill(IGNORED == 3, -100)}.get(name, TARGET)


def seeded(head: LinearHead | CosineHead, features: Tensor, target: Any, seed: int = 0) -> Tensor:
    """The loss of the draw that belongs to a seed."""
    torch.manual_seed(seed)
    return head(features, target)


def chosen(head: LinearHead | CosineHead, target: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The classes of that draw, and how many classes each stands for."""
    assert head.sampling is not None
    torch.manual_seed(seed)
    found = head.sampling.draw(target, head.loss.ignore_index, head.weight, 0)
    assert found.rows is not None
    assert found.stands is not None
    return found.rows, found.stands


def over(head: LinearHead | CosineHead, features: Tensor, target: Any, rows: Tensor, stands: Tensor) -> Tensor:
    """The loss over the chosen classes: that of a source of their rows, with tables cut to them."""
    assert head.sampling is not None
    places = torch.full((C,), -100).index_copy(0, rows, torch.arange(len(rows)))
    ignored, offset = head.loss.ignore_index, head.loss.table(target, C)
    cut = [torch.where(one == ignored, -100, places[one.clamp(min=0)]) for one in indices(target)]
    table = torch.zeros(len(rows)).double() if offset is None else offset[rows]
    if head.loss.label_smoothing or head.loss.class_smoothing is not None:
        lams = [target.lam, 1 - target.lam] if isinstance(target, MixedTarget) else [1.0]
        return sum(smoothed(head, features, one, rows, stands, lam) for one, lam in zip(cut, lams, strict=True))
    settings = head.loss.settings(table + stands.log() if head.sampling.logq else table, getattr(head, "scale", None))
    if head.loss.input_kind == "cosine":
        settings["scale"] = head.loss.scale
    whole = {name: settings[name] for name in ("weight", "class_margin")}
    settings |= {name: table[rows] for name, table in whole.items() if table is not None and len(table) == C}
    settings["ignore_index"] = -100
    cosine = isinstance(head, CosineHead)
    bias = None if cosine or head.bias is None else head.bias[rows]
    kind = Normalize.BOTH if cosine else Normalize.NOTHING
    source = make_source(features, head.weight[rows], bias, kind, head.loss.margin, None)
    again = MixedTarget(cut[0], cut[1], target.lam) if isinstance(target, MixedTarget) else cut[0]
    return evaluate(source, (len(features), len(rows)), again, **settings)


def smoothed(head: Any, features: Tensor, place: Tensor, rows: Tensor, stands: Tensor, lam: Any) -> Any:
    """(1 - e_y) w_y (-log p_y) + e_y sum_k s_k (w_k / C) (-log p_k), each class counted s_k times; rows lam times."""
    weight = torch.ones(C).double() if head.loss.weight is None else head.loss.weight
    smoothing = (
        head.loss.label_smoothing if head.loss.class_smoothing is None else head.loss.class_smoothing[rows][place]
    )
    u = features @ head.weight[rows].T
    u = u if head.bias is None else u + head.bias[rows]
    u = u if head.loss.offset is None else u + head.loss.offset[rows]
    log_p = u - (u + stands.log() if head.sampling.logq else u).logsumexp(1, keepdim=True)
    own = -log_p.gather(1, place[:, None])[:, 0] * weight[rows][place]
    even = -(stands * weight[rows] / C * log_p).sum(1)
    return (lam * ((1 - smoothing) * own + smoothing * even)).sum() / weight[rows][place].sum()


def indices(target: Any) -> list[Tensor]:
    """The class indices of one target a row, or of two."""
    return [target.first, target.second] if isinstance(target, MixedTarget) else [target]


@pytest.mark.parametrize("name", HEADS)
def test_the_whole_share_is_the_whole_to_the_bit(name: str) -> None:
    torch.manual_seed(1)
    whole = HEADS[name]().double()
    torch.manual_seed(1)
    ours = HEADS[name](sample=1.0, logq_correction=True).double()
    found = []
    for head in (whole, ours):
        features = FEATURES.clone().requires_grad_()
        loss = seeded(head, features, target_of(name))
        found.append([loss.detach(), *torch.autograd.grad(loss.sum(), [features, *head.parameters()])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("logq", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_that_of_the_chosen_classes(name: str, logq: bool) -> None:
    head = HEADS[name](sample=0.5, logq_correction=logq).double()
    for target in (target_of(name), *(() if "counts" in name else (MIXED,))):
        rows, stands = chosen(head, target)
        assert len(rows) == C // 2
        found = []
        for call, more in ((seeded, ()), (over, (rows, stands))):
            features = FEATURES.clone().requires_grad_()
            loss = call(head, features, target, *more)
            found.append([loss.detach(), *torch.autograd.grad(loss.sum(), [features, *head.parameters()])])
        for ours, exact in zip(*found, strict=True):
            assert_close(ours, exact, torch.float64, name)
        rest = torch.ones(C, dtype=torch.bool).index_fill(0, rows, False)
        for gradient in found[0][2:]:
            assert bool((gradient[rest] == 0).all())
            assert name == "counts of the batch" or bool((gradient[rows] != 0).any())


@pytest.mark.parametrize("target", [TARGET, MIXED, IGNORED, TARGET[:0]], ids=["one", "two", "ignored", "none"])
def test_positives_are_always_there_and_the_number_is_the_share(target: Any) -> None:
    head = LinearHead(D, C, losses.Loss(ignore_index=3), sample=0.5)
    counted = torch.cat(indices(target))
    positives = counted[counted != 3].unique()
    often = torch.zeros(C)
    for seed in range(400):
        rows, stands = chosen(head, target, seed)
        assert len(rows) == C // 2
        assert torch.equal(rows, rows.unique())
        assert bool(torch.isin(positives, rows).all())
        share = (C - len(positives)) / (len(rows) - len(positives))
        wanted = torch.where(torch.isin(rows, positives), 1.0, torch.tensor(share, dtype=torch.float64))
        assert_close(stands, wanted, torch.float64)
        often[rows] += 1
    rest = torch.ones(C, dtype=torch.bool).index_fill(0, positives, False)
    q = 1 / share
    spread = math.sqrt(400 * q * (1 - q))
    assert float(((often[rest] - 400 * q) / spread).abs().max()) < 4  # all of them as often as by chance
    assert rest.sum() == C or bool((often[~rest] == 400).all())


def test_more_positives_than_the_share() -> None:
    target = torch.arange(16)
    head = LinearHead(D, C, losses.CrossEntropyLoss(label_smoothing=0.1), sample=0.1, logq_correction=True).double()
    rows, stands = chosen(head, target)
    assert torch.equal(rows, target)
    assert torch.equal(stands, torch.ones(16).double())
    features = normal(16, D, seed=9)
    ours, exact = seeded(head, features, target), over(head, features, target, rows, stands)
    assert_close(ours.detach(), exact.detach(), torch.float64)
    assert len(chosen(head, torch.tensor([5]))[0]) == 4


def test_the_corrected_sum_is_unbiased() -> None:
    """The mean over draws of sum_k exp(u_k + log s_k) is the sum over all classes; without the correction it is not."""
    draws = 1000
    for logq in (True, False):
        head = LinearHead(D, C, losses.CrossEntropyLoss(reduction="none"), sample=0.4, logq_correction=logq).double()
        with torch.no_grad():
            logits = head(FEATURES)
            own = logits.gather(1, TARGET[:, None])[:, 0]
            sums = torch.stack([(seeded(head, FEATURES, TARGET, seed) + own).exp() for seed in range(draws)])
        whole = logits.exp().sum(1)
        away = (sums.mean(0) - whole) / (sums.std(0) / math.sqrt(draws))
        assert (float(away.abs().max()) < 4) == logq, away
    assert float((sums.mean(0) / whole).max()) < 0.8


def test_the_draw_is_torch_s_own_and_takes_as_much_whatever_the_batch() -> None:
    after = []
    for name, sample in (("plain", 0.3), ("bias, weight, offset", 0.5)):
        head = HEADS[name](sample=sample).double()
        for rows in (N, 1):
            torch.manual_seed(7)
            losses_of = [head(FEATURES[:rows], TARGET[:rows]) for _ in range(3)]
            after.append(torch.get_rng_state())
            torch.manual_seed(7)
            again = [head(FEATURES[:rows], TARGET[:rows]) for _ in range(3)]
            assert all(torch.equal(one, other) for one, other in zip(losses_of, again, strict=True))
            assert len({loss.item() for loss in losses_of}) == 3
    assert all(torch.equal(one, after[0]) for one in after)
    assert list(HEADS["plain"](sample=0.3).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("name", ["bias, weight, offset", "ldam"])
def test_evaluation_and_prediction_are_of_all_classes(name: str) -> None:
    torch.manual_seed(1)
    whole = HEADS[name]().double()
    torch.manual_seed(1)
    ours = HEADS[name](sample=0.1).double()
    assert torch.equal(ours(FEATURES), whole(FEATURES))
    before = torch.get_rng_state()
    assert torch.equal(ours.eval()(FEATURES, TARGET), whole.eval()(FEATURES, TARGET))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(ours.train()(FEATURES, TARGET), whole.train()(FEATURES, TARGET))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_autocast(dtype: torch.dtype) -> None:
    head = CosineHead(D, C, losses.ArcFaceLoss(scale=8.0), sample=0.5, logq_correction=True)
    exact = seeded(head.double(), FEATURES, TARGET).detach()
    ours = seeded(head.to(dtype), FEATURES.to(dtype), TARGET)
    ours.backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == dtype
    assert abs(float(ours.detach()) / float(exact) - 1) < {torch.float32: 1e-5}.get(dtype, 3e-2)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            mixed = seeded(head.float(), FEATURES.float(), TARGET)
        assert abs(float(mixed.detach()) / float(exact) - 1) < 3e-2


def test_compiled_is_what_is_eager() -> None:
    head = LinearHead(D, C, losses.CrossEntropyLoss(label_smoothing=0.1), sample=0.5, logq_correction=True).double()
    exact = seeded(head, FEATURES, TARGET)
    ours = seeded(torch.compile(head, backend="aot_eager", fullgraph=True), FEATURES, TARGET)
    assert_close(ours.detach(), exact.detach(), torch.float64)
    gradients = [torch.autograd.grad(loss, head.weight)[0] for loss in (ours, exact)]
    assert_close(gradients[0], gradients[1], torch.float64)


def test_training_approaches_the_loss_of_all_classes() -> None:
    """Classes with a direction each: trained on a fifth of them a step, all of them are told apart."""
    classes, found = 200, {}
    centres = torch.nn.functional.normalize(normal(classes, 16, seed=11, dtype=torch.float32))
    for sample in (None, 0.2):
        torch.manual_seed(2)
        head = CosineHead(16, classes, losses.CosFaceLoss(0.1, scale=16.0), sample=sample, logq_correction=bool(sample))
        start = head.eval()(centres, torch.arange(classes)).item()
        optimizer = torch.optim.AdamW(head.parameters(), 0.05)
        for step in range(150):
            target = classes_of(64, classes, seed=step)
            optimizer.zero_grad()
            head.train()(centres[target] + 0.1 * normal(64, 16, seed=step, dtype=torch.float32), target).backward()
            optimizer.step()
        found[sample] = head.eval()(centres, torch.arange(classes)).item()
    assert found[None] < 0.3 * start
    assert found[0.2] < found[None] + 0.1 * (start - found[None]), (start, found)


@pytest.mark.parametrize("sample", [0.0, -0.1, 1.5, math.nan])
def test_a_share_is_above_0_and_at_most_1(sample: float) -> None:
    with pytest.raises(ValueError, match="sample must be"):
        CosineHead(D, C, losses.CosFaceLoss(), sample=sample)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="sample must be a number, got 'all'"):
        LinearHead(D, C, losses.CrossEntropyLoss(), sample="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logq_correction must be False without sample"):
        LinearHead(D, C, losses.CrossEntropyLoss(), logq_correction=True)
    for loss in (losses.LADELoss(COUNTS), losses.EstimatedOffsetLoss(C, D)):
        with pytest.raises(ValueError, match=f"sample must be None with {type(loss).__name__}"):
            LinearHead(D, C, loss, bias=False, sample=0.5)
    head = LinearHead(D, C, losses.LogitAdjustmentLoss([0, *COUNTS[1:]]), sample=0.5).double()
    with pytest.raises(ValueError, match="target must hold class indices where classes are sampled, got probabilities"):
        head(FEATURES, torch.rand(N, C).double())
    with pytest.raises(TypeError, match="target must be a tensor of class indices, got list"):
        head(FEATURES, TARGET.tolist())
    with pytest.raises(IndexError, match=f"target holds {C}; allowed are 0 to {C - 1}"):
        head(FEATURES, torch.full((N,), C))
    with pytest.raises(ValueError, match="offset is -inf for class 0"):
        head(FEATURES, torch.zeros(N, dtype=torch.int64))
    assert "sample=0.5, logq_correction=False" in repr(head)
