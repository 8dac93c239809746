"""The state of a loss: its buffers and keys are those of its construction, and loading is as strict as torch's."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from every_loss import ALL, COUNTS, FILLED, PLAIN, TARGET, WEIGHT, C, D, N, input_of, value
from helpers import normal
from tolerances import assert_close
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lt_kernels import heads, losses, regularizers, schedules

TWO = torch.tensor([1.0, 9.0])


def second_class(loss: nn.Module) -> float:
    """The loss of one row of equal logits whose class is the second: its weight times log 2."""
    return float(loss(torch.zeros(1, 2), torch.tensor([1])))


def test_a_missing_weight_is_said_and_the_table_stays() -> None:
    loss = losses.CrossEntropyLoss(TWO, reduction="sum")
    found = loss.load_state_dict({}, strict=False)
    assert found.missing_keys == ["weight"]
    assert second_class(loss) == pytest.approx(9 * math.log(2))
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        loss.load_state_dict({})


def test_a_weight_that_is_not_expected_is_said_and_put_nowhere() -> None:
    loss = losses.CrossEntropyLoss(reduction="sum")
    found = loss.load_state_dict({"weight": TWO}, strict=False)
    assert found.unexpected_keys == ["weight"]
    assert second_class(loss) == pytest.approx(math.log(2))
    assert loss.weight is None
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        loss.load_state_dict({"weight": TWO})


@pytest.mark.parametrize("name", FILLED)
def test_nothing_loaded_is_nothing_changed(name: str) -> None:
    module = FILLED[name]().eval()
    before = value(module)
    keys = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}  # which torch forgives
    assert set(module.load_state_dict({}, strict=False).missing_keys) == keys
    assert torch.equal(value(module), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**module.state_dict(), "other": torch.zeros(1)})


def with_weights(name: str) -> list[nn.Module]:
    """A loss or head before and after a schedule has set, removed and set its class weights."""
    module = ALL[name]()
    loss = getattr(module, "loss", module)
    if not hasattr(loss, "set_weight"):
        pytest.skip(f"{name} takes no class weights")
    before = copy.deepcopy(module)
    for weight in (WEIGHT, None, WEIGHT):
        loss.set_weight(weight)
    return [before, module]


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_changes_no_buffer_and_no_key(name: str) -> None:
    before, after = with_weights(name)
    assert list(before.state_dict()) == list(after.state_dict())
    assert [name for name, _ in before.named_buffers()] == [name for name, _ in after.named_buffers()]
    for old, new in zip(before.state_dict().values(), after.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    before.load_state_dict(after.state_dict())


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", ["cosine ldam", "cosine dbm", "linear lade", "bcl", "linear bs"])
def test_an_average_with_buffers_keeps_every_table(name: str, ema: bool) -> None:
    head = FILLED[name]()
    averaged = AveragedModel(head, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9) if ema else None)
    head.loss.set_weight(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    for _ in range(3):
        averaged.update_parameters(head)
    whole = dict(head.named_buffers())
    for key, table in averaged.module.named_buffers():
        if "prototypes" not in key and "projection" not in key:
            assert torch.equal(table, whole[key]), key


def test_the_margins_of_an_averaged_ldam_are_its_own() -> None:
    """max_margin (n_min / n)^(1/4), however often weights were set: 0.5 for the class with 1, 0.25 for that with 16."""
    head = heads.CosineHead(3, 2, losses.LDAMLoss([16, 1]))
    averaged = AveragedModel(head, use_buffers=True)
    for weight in (None, TWO, TWO):
        head.loss.set_weight(weight)
        averaged.update_parameters(head)
    assert averaged.module.loss.class_margin.tolist() == [0.25, 0.5]


def test_set_weights_hold_until_others_are_set() -> None:
    loss = losses.CrossEntropyLoss(TWO, reduction="sum")
    assert second_class(loss) == pytest.approx(9 * math.log(2))
    loss.set_weight(torch.tensor([1.0, 4.0]))
    assert second_class(loss) == pytest.approx(4 * math.log(2))
    loss.load_state_dict({"weight": torch.tensor([1.0, 7.0])})
    assert second_class(loss) == pytest.approx(4 * math.log(2))
    loss.set_weight(None)
    assert second_class(loss) == pytest.approx(math.log(2))
    assert loss.state_dict()["weight"].tolist() == [1, 7]
    loss.weight = torch.tensor([1.0, 3.0])  # where there is a table, it is written
    assert second_class(loss) == pytest.approx(3 * math.log(2))
    bare = losses.CrossEntropyLoss(reduction="sum")
    bare.weight = TWO
    assert second_class(bare) == pytest.approx(9 * math.log(2))
    assert not list(bare.buffers())


@pytest.mark.parametrize(
    "name", ["CrossEntropyLoss", "LDAMLoss", "weight", "LogitAdjustmentLoss", "cosine ldam", "bcl"]
)
def test_set_weights_are_copied_with_the_loss_and_cast_with_it(name: str) -> None:
    _, module = with_weights(name)
    module.eval()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), loaded):
        assert torch.equal(value(other), value(module))
    loss = getattr(module, "loss", module)
    loss = getattr(loss, "base", loss)
    for cast in (module.half, module.double, module.float, module.bfloat16):
        cast()
        assert loss.weight.dtype == torch.float64
        assert loss.weight.tolist() == WEIGHT.tolist()


def test_a_resumed_schedule_gives_the_same_bits() -> None:
    """Deferred weights are the schedule's, not the checkpoint's: the state fits before and after they come in."""
    schedule = schedules.DeferredReweighting(COUNTS, start_epoch=1)

    def step(head: nn.Module, epoch: int) -> None:
        head.loss.set_weight(schedule(epoch))
        head.zero_grad()
        head(normal(len(TARGET), D, seed=4, dtype=torch.float32), TARGET).backward()
        with torch.no_grad():
            head.weight -= 0.1 * head.weight.grad

    for stop in (1, 2):
        whole, resumed = (heads.CosineHead(D, len(COUNTS), losses.LDAMLoss(COUNTS)) for _ in range(2))
        for epoch in range(3):
            if epoch == stop:
                resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
            if epoch >= stop:
                step(resumed, epoch)
            step(whole, epoch)
        assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own
def test_weights_of_every_epoch_compile_once_each_way() -> None:
    graphs: list[torch.fx.GraphModule] = []
    loss = losses.LDAMLoss(COUNTS)
    compiled = torch.compile(loss, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    for epoch in range(6):
        weight = None if epoch < 2 else WEIGHT + epoch
        loss.set_weight(weight)
        found = compiled(input_of(loss), TARGET)
        assert_close(found, losses.LDAMLoss(COUNTS, weight=weight)(input_of(loss), TARGET))
    assert len(graphs) == 2


def test_annealing_is_no_part_of_the_state() -> None:
    """It is copied and moved with the loss, and whatever the loss is cast to, its value stays."""
    loss = losses.SphereFaceLoss(annealing=1000.0)
    loss.set_annealing(8.3)
    assert list(loss.state_dict()) == []
    loss.load_state_dict(losses.SphereFaceLoss().state_dict())
    for other in (copy.deepcopy(loss), loss.half(), loss.to(torch.bfloat16), loss.float()):
        assert other.annealing == 8.3
    with torch.device("meta"):
        built = losses.SphereFaceLoss(annealing=3.0)
    assert built.to_empty(device="cpu").annealing == 3.0
    assert torch.equal(losses.SphereFaceLoss(annealing=8.3)(input_of(loss), TARGET), loss(input_of(loss), TARGET))


def test_a_resumed_annealing_gives_the_same_bits() -> None:
    schedule = schedules.SphereFaceAnnealing(9.0, 0.5, 1.0)
    whole, resumed = (heads.CosineHead(D, len(COUNTS), losses.SphereFaceLoss()) for _ in range(2))
    for step in range(6):
        if step == 3:
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        for head in (whole, resumed)[: 1 + (step >= 3)]:
            head.loss.set_annealing(schedule(step))
            head.zero_grad()
            head(normal(len(TARGET), D, seed=4, dtype=torch.float32), TARGET).backward()
            with torch.no_grad():
                head.weight -= 0.1 * head.weight.grad
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("of_head", [False, True])
def test_annealing_of_every_step_compiles_once(of_head: bool) -> None:
    graphs: list[torch.fx.GraphModule] = []
    loss = losses.SphereFaceLoss(annealing=1000.0)
    module, input = loss, input_of(loss)
    if of_head:
        module, input = heads.CosineHead(D, C, loss), normal(N, D, seed=4, dtype=torch.float32)
    compiled = torch.compile(module, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    found = []
    for annealing in (1000.0, 31.0, 5.0, 0.0):
        loss.set_annealing(annealing)
        found.append(compiled(input, TARGET).detach())
        assert_close(found[-1], module(input, TARGET).detach())
    assert len(graphs) == 1
    assert len({value.item() for value in found}) == 4


def test_a_list_of_near_pairs_is_no_buffer() -> None:
    term = regularizers.LogitWeightRepulsion(neighbours="list")
    before = len(list(term.buffers()))
    term(normal(50, 8, seed=5, dtype=torch.float32))
    assert len(list(term.buffers())) == before == 0


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "LADELoss", "ldam weight", "LabelAwareSmoothingLoss"])
def test_loading_by_assignment_shares_nothing_and_rounds_nothing(name: str) -> None:
    loss, other = PLAIN[name](), PLAIN[name]()
    state = {key: 2 * table for key, table in other.state_dict().items()}
    loss.load_state_dict(state, assign=True)
    for key, table in state.items():
        assert loss.state_dict()[key].dtype == torch.float64
        assert torch.equal(loss.state_dict()[key], table)
        table.zero_()
        assert loss.state_dict()[key].abs().sum() > 0


def test_a_temperature_without_dimensions_is_read() -> None:
    """One of an entry, as FSDP wants it; older checkpoints hold the number alone."""
    loss = losses.GMLLoss(losses.LogitAdjustmentLoss(COUNTS), COUNTS, temperature=0.1)
    assert all(parameter.ndim for parameter in loss.parameters())
    state = loss.state_dict()
    state["log_temperature"] = torch.tensor(math.log(0.3))
    loss.load_state_dict(state)
    assert_close(loss.log_temperature.exp().detach(), torch.tensor([0.3]))
    model = nn.Sequential(loss)
    model.load_state_dict({f"0.{key}": table for key, table in state.items()})


@pytest.mark.parametrize("name", ALL)
def test_the_text_of_a_module_has_no_numbers_of_its_tables(name: str) -> None:
    """It may have thousands of classes; on the meta device and in half precision the text is the same."""
    module = ALL[name]()
    text = repr(module)
    assert type(module).__name__ in text
    assert "tensor" not in text
    assert max(len(line) for line in text.splitlines()) < 200
    assert repr(copy.deepcopy(module).to("meta")) == repr(copy.deepcopy(module).half()) == text


def test_the_text_of_a_loss_has_its_settings() -> None:
    assert repr(losses.CrossEntropyLoss()) == "CrossEntropyLoss()"
    given = losses.BalancedSoftmaxLoss(COUNTS, label_smoothing=0.1, softcap=30, reduction="sum")
    settings = "offset=float64[4], label_smoothing=0.1, softcap=30.0, reduction='sum'"
    assert repr(given) == f"BalancedSoftmaxLoss({settings})"
    assert repr(losses.ARBLoss(counts="batch")) == "ARBLoss(counts='batch')"
    loss = losses.SphereFaceLoss()
    loss.set_annealing(7.0)
    assert repr(loss) == "SphereFaceLoss(margin=SphereFace(margin=4, annealing=7.0))"
    loss = losses.CrossEntropyLoss()
    loss.set_weight(WEIGHT)
    assert repr(loss) == "CrossEntropyLoss(weight=float64[4])"
