"""Optimizers, schedules and parameters by patterns: each beside torch's own, driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

from cuts import cut, same

from lt_kernels.data import load
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.model.parameters import depth_factors
from lt_kernels.train.run.build import build_module
from lt_kernels.train.run.training import EpochSettings, train_run

DIGITS = load("digits-lt")
BLOCKS = {"class_path": "own_parts.Blocks", "init_args": {"width": 10}}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.8, 0.95]}}
PATTERNS = {"no_decay": ["*bias", "*norm*"], "lr_factors": {"head.*": 10.0, "*stem*": 0.5}, "layer_decay": 0.5}
STEPS = 10  # of an epoch: 304 samples by 32


def config(**changes: Any) -> TrainConfig:
    settings = {"imbalance": 100, "threads": 1, "epochs": 4, "batch_size": 32, "lr": 0.01, "warmup_epochs": 0}
    return make_config({**settings, "network": BLOCKS, **changes})


def of_torch(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"torch.optim.lr_scheduler.{name}", "init_args": arguments}


def expected_factor(name: str) -> float:
    """By hand: three blocks, so the stem has 0.5^4 of layer-wise decay, and 0.5 of its own."""
    if name.startswith("head."):
        return 10.0
    if ".stem." in name:
        return 0.5 * 0.5**4
    return 0.5 ** (3 - int(name.split(".")[2])) if ".blocks." in name else 1.0


@pytest.mark.parametrize("optimizer", ["sgd", ADAMW])
def test_groups_are_those_of_the_patterns(optimizer: Any) -> None:
    """Each parameter has its rate and its decay; a step is that of torch's optimizer with a group for each."""
    module = build_module(config(optimizer=optimizer, weight_decay=0.1, **PATTERNS), DIGITS)
    made = module.configure_optimizers()
    named = dict(module.named_parameters())
    found = {one: group for group in made.param_groups for one in group["params"]}
    assert set(found) == set(named.values())
    by_hand = []
    for name, one in named.items():
        still = name.endswith("bias") or "norm" in name
        group = {"lr": 0.01 * expected_factor(name), "weight_decay": 0.0 if still else 0.1}
        assert {key: found[one][key] for key in group} == pytest.approx(group), name
        by_hand.append({"params": [torch.nn.Parameter(one.detach().clone())], **group})
    other = (
        torch.optim.SGD(by_hand, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(by_hand, betas=(0.8, 0.95))
    )
    module(DIGITS.train[0][:8]).square().mean().backward()
    for group, one in zip(by_hand, named.values(), strict=True):
        group["params"][0].grad = None if one.grad is None else one.grad.clone()
    made.step()
    other.step()
    for group, one in zip(by_hand, named.values(), strict=True):
        torch.testing.assert_close(group["params"][0], one, rtol=1e-6, atol=1e-7)


def test_depths_are_those_of_the_outermost_blocks() -> None:
    """Of a residual network's stages each block is one, whatever is nested in it; what has no parameters is none."""
    nn = torch.nn
    net = nn.Module()
    net.token = nn.Parameter(torch.zeros(1))
    net.layer1 = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.ReLU())
    net.layer2 = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    net.norm = nn.LayerNorm(2)
    factors = depth_factors(net, 0.1)
    assert factors == pytest.approx(
        {"token": 1e-3, **{f"layer1.0.{i}.{kind}": 1e-2 for i in (0, 1) for kind in ("weight", "bias")},
         "layer2.0.weight": 1e-1, "norm.weight": 1.0, "norm.bias": 1.0}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="layer_decay must be 1 for a network without blocks"):
        depth_factors(nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize("experts", [False, True])
def test_frozen_parts_stay_as_they_are(tmp_path: Path, experts: bool) -> None:
    """Weights and statistics alike; their dropout is off, and the rest learns."""
    changes: dict[str, Any] = {"method": "ncl", "method_options": {"experts": 2}, "augment": "shift"} if experts else {}
    frozen = config(freeze=["network.stem.*", "network.blocks.[01].*"], epochs=1, **changes)
    module = build_module(frozen, DIGITS)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train_run(frozen, tmp_path)
    after = read_sealed(tmp_path / "last.ckpt")["state_dict"]
    still = {name for name, value in before.items() if torch.equal(value, after[name]) and "network." in name}
    frozen_names = {name for name in before if any(part in name for part in (".stem.", ".blocks.0.", ".blocks.1."))}
    assert still == frozen_names
    module.train()
    own = module.network.networks[0] if experts else module.network
    assert [part.training for part in (own.stem, own.blocks[1], own.blocks[1][3], own.blocks[2][3], own)] == [
        *(False, False, False, True, True)
    ]


WRONG = [
    ({"freeze": ["stem.*"]}, r"freeze must match .* such as network.stem.weight, .*; got 'stem.\*'"),
    ({"freeze": ["head.*"]}, r"freeze must match"),
    ({"no_decay": ["*none*"]}, r"no_decay must match"),
    ({"lr_factors": {"*none*": 2}}, r"lr_factors must match"),
    ({"lr_factors": {"*": 0}}, r"lr_factors.\* must be a finite number above 0, got 0"),
    ({"layer_decay": 1.5}, r"layer_decay must be .* at most 1, got 1.5"),
    ({"optimizer": "adam"}, r"optimizer must be one of sgd, got 'adam'"),
    ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1}}}, r"init_args.lr must be left out"),
    ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"beta": 1}}}, r"among .*betas.*; got beta"),
    ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": "a"}}}, r"optimizer.eps.*float.* a"),
    ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": -1.0}}}, r"Invalid epsilon value: -1"),
    ({"optimizer": {"class_path": "torch.optim.Rprop"}}, r"weight_decay must be 0 for torch.optim.Rprop, got 0.0005"),
    ({"optimizer": ADAMW, "momentum": 0.5}, r"momentum must be left out where optimizer is not sgd"),
    ({"optimizer": ADAMW, "nesterov": True}, r"nesterov must be left out where optimizer is not sgd"),
    ({"schedule": "linear"}, r"schedule must be one of cosine, step, constant, poly, got 'linear'"),
    ({"schedule": of_torch("StepLR", step_size="a")}, r"schedule.step_size.*int.* a"),
    ({"schedule": of_torch("StepLR")}, r"required: schedule.step_size"),
    ({"schedule": {"class_path": "torch.optim.SGD"}}, r"schedule.class_path must name a class that is a LRScheduler"),
    ({"schedule_interval": "step"}, r"schedule_interval must be epoch, unless schedule is a class, got 'step'"),
    ({"schedule": of_torch("ReduceLROnPlateau"), "schedule_interval": "step"}, r"must be epoch for ReduceLROnPlateau"),
    (
        {"schedule": of_torch("OneCycleLR", max_lr=0.1, total_steps=40), "lr_factors": {"head.*": 2}},
        r"schedule must be a schedule that keeps the ratios",
    ),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_wrong_settings_are_named_before_a_run_begins(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_run(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_schedule_that_ends_before_the_run_is_named(tmp_path: Path) -> None:
    short = config(schedule=of_torch("OneCycleLR", max_lr=0.1, total_steps=3), schedule_interval="step", epochs=1)
    with pytest.raises(ConfigError, match=r"schedule.init_args must fit the run, after \d+ steps: Tried to step"):
        train_run(short, tmp_path / "run")


def rates_of(settings: TrainConfig, folder: Path) -> list[list[float]]:
    """The learning rates of each step, those of all groups."""
    found: list[list[float]] = []
    usual = EpochSettings.on_train_batch_start

    def note(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        usual(self, trainer, module, batch, batch_idx)
        if batch_idx % settings.accumulate == 0:
            found.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EpochSettings, "on_train_batch_start", note)
        train_run(settings, folder)
    return found


def by_hand(schedule: dict[str, Any], interval: str, rates: list[float], losses: list[float]) -> list[list[float]]:
    """What torch's schedule gives a plain optimizer."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    made = getattr(torch.optim.lr_scheduler, schedule["class_path"].rpartition(".")[2])(
        optimizer, **schedule["init_args"]
    )
    found = []
    for loss in losses:
        for _ in range(STEPS):
            optimizer.step()
            found.append(made.get_last_lr())
            made.step() if interval == "step" else None
        if interval == "epoch":
            made.step(loss) if "Plateau" in schedule["class_path"] else made.step()
    return found


SCHEDULES = [
    (of_torch("CosineAnnealingLR", T_max=4), "epoch"),
    (of_torch("OneCycleLR", max_lr=0.02, total_steps=41), "step"),
    (of_torch("MultiStepLR", milestones=[1, 3], gamma=0.2), "epoch"),
    (of_torch("ReduceLROnPlateau", patience=0, threshold=0.9), "epoch"),
]


@pytest.mark.parametrize("schedule, interval", SCHEDULES)
@pytest.mark.parametrize("warm", [0, 2])
def test_rates_are_those_of_torch(tmp_path: Path, schedule: dict[str, Any], interval: str, warm: int) -> None:
    """Times the share that warm-up lets through; and the rates of groups keep their ratios."""
    factors = {} if "OneCycle" in schedule["class_path"] else {"head.*": 4.0}
    settings = config(schedule=schedule, schedule_interval=interval, warmup_epochs=warm, lr_factors=factors)
    settings = settings.replace(accumulate=2 if warm else 1)
    found = rates_of(settings, tmp_path)
    losses = [row["loss"] for row in read_rows(tmp_path)]
    expected = by_hand(schedule, interval, [0.01, 0.04][: len(found[0])], losses)
    shares = [min(1.0, (step + 1) / STEPS / warm) if warm else 1.0 for step in range(4 * STEPS)]
    for share, one, other in zip(shares, expected, found, strict=True):
        assert other == pytest.approx([share * rate for rate in one], rel=1e-12)
    assert len(set(map(tuple, expected))) > 2
    assert read_rows(tmp_path)[-1]["lr"] == max(found[-1])


RUNS = {
    "adamw": {"optimizer": ADAMW, **PATTERNS},
    "adamw, one cycle a step": {
        "optimizer": ADAMW, "schedule": SCHEDULES[1][0], "schedule_interval": "step", "accumulate": 2,
    },
    "sgd, on a plateau, frozen": {"schedule": SCHEDULES[3][0], "freeze": ["*stem*"], "warmup_epochs": 1},
    "milestones": {"optimizer": ADAMW, "schedule": SCHEDULES[2][0]},
    "a second stage": {"optimizer": ADAMW, "schedule": SCHEDULES[0][0], "method": "crt", "epochs": 3},
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """The settings of one of RUNS, and its folder: trained at a stretch."""
    mixup = 0.0 if "stage" in request.param else 0.5
    settings, folder = (
        config(checkpoint_steps=4, mixup_alpha=mixup, **RUNS[request.param]),
        tmp_path_factory.mktemp("whole"),
    )
    train_run(settings, folder)
    return settings, folder


@pytest.mark.parametrize("step", [13, 20])
def test_a_run_that_is_cut_short_goes_on_to_the_bit(tmp_path: Path, whole: tuple[TrainConfig, Path], step: int) -> None:
    """Within an epoch and at the start of one: weights, moments, the schedule's counters and the rows."""
    settings, folder = whole
    cut(step, lambda: train_run(settings, tmp_path / "cut"))
    torch.manual_seed(1)
    train_run(settings, tmp_path / "cut", resume=True)
    first, resumed = (read_sealed(one / "last.ckpt") for one in (folder, tmp_path / "cut"))
    for key in ("state_dict", "optimizer_states", "loops", "global_step"):
        assert same(first[key], resumed[key]), key
    assert same(first["callbacks"].get("ScheduleSteps"), resumed["callbacks"].get("ScheduleSteps"))
    rows = [
        [{k: row[k] for k in row if k != "seconds"} for row in read_rows(one)] for one in (folder, tmp_path / "cut")
    ]
    assert rows[0] == rows[1]
