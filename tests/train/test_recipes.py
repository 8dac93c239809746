"""Every recipe: it parses, names what exists, and its network, method and augmentation learn together for two steps."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("yaml", reason="the extra [train] is not installed")
pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("PIL", reason="pillow, which matplotlib brings along, is not installed")

from benchmarks.tables.recipes import ours
from lt_kernels.data import READERS, LongTailedData, load
from lt_kernels.data.folders import SOURCES
from lt_kernels.train.augment.augmentations import AUGMENTATIONS, augment
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.methods.build import find_method, method_options, total_epochs
from lt_kernels.train.methods.variants import config_of, variants_of
from lt_kernels.train.model.networks import NETWORKS
from lt_kernels.train.published import carried
from lt_kernels.train.recipes import every_recipe, read_settings
from lt_kernels.train.run.build import build_module

RECIPES = {
    name: path
    for name, path in every_recipe().items()
    if not ours(name) and not re.search("cityscapes|clip|timm", name)  # which have tests of their own
}
# A network of each kind at its own width, with the recipe's own method; the others are four channels wide.
WHOLE = {"cifar10-lt-100", "imagenet-lt-resnet10", "imagenet-lt", "inaturalist2018", "places-lt"}
NARROW = 4
DEEP = {"resnet152": "resnet50", "resnext152": "resnext50"}  # built once, in places-lt: the same blocks, more of them
ROWS = 3  # of a batch
SMALL = {"resize": 36, "train_crop": 36, "crop": 32, "threads": 1}
# What the published commands and files say, by the end of a recipe's name.
PUBLISHED = {
    "lt-100": dict(epochs=200, batch_size=64, lr=0.1, weight_decay=2e-4, warmup_epochs=5, schedule="cosine"),
    "-ldam": dict(epochs=200, batch_size=128, lr=0.1, weight_decay=2e-4, milestones=(160, 180), gammas=(0.01, 0.0001)),
    "-lade": dict(method="lade"),
    "-arb": dict(batch_size=128, lr=0.1, momentum=0.9, milestones=(160, 180), gammas=(0.1, 0.01), epochs=200),
    "-steps": dict(milestones=(160, 180), gammas=(0.1, 0.01), augment="crop-flip"),
    "lt-bcl": dict(batch_size=256, lr=0.1, weight_decay=5e-4),
    "lt-gml": dict(batch_size=128, lr=0.05, weight_decay=5e-4),
    "2018-bcl": dict(batch_size=256, lr=0.2, weight_decay=1e-4),
    "2018-gml": dict(batch_size=128, lr=0.02, weight_decay=2e-4),
    "-ncl": dict(weight_decay=2e-4, method_options={"experts": 3}),
    "places-lt": dict(epochs=30, batch_size=128, lr=0.05, lr_factors={"network.*": 0.02}, milestones=(10, 20)),
    "imagenet-lt": dict(network="resnext50", epochs=90, batch_size=512, lr=0.2, weight_decay=5e-4, warmup_epochs=0),
}


SETTINGS = {name: read_settings(path) for name, path in RECIPES.items()}


def settings_of(name: str) -> dict[str, Any]:
    return copy.deepcopy(SETTINGS[name])


def methods_of(name: str) -> list[str]:
    """The recipe's own method, those with published figures, and its variants."""
    settings = settings_of(name)
    return list(dict.fromkeys([settings["method"], *(row.method for row in carried(name)), *variants_of(settings)]))


def reduced(name: str, method: str) -> TrainConfig:
    """The recipe with a method or variant, without what only a real run has (stored weights, a teacher), and narrow."""
    settings = settings_of(name)
    config = config_of(settings, method, 0)
    network = {key: value for key, value in config.network_options.items() if key != "weights"}
    own, kind = dict(config.method_options), config.network
    if name not in WHOLE or method != settings["method"]:
        network["width"], kind = NARROW, DEEP.get(kind, kind)
        own |= {"out_features": 8} if "out_features" in own else {}
    if own.pop("teacher", None):
        own["distillation_weight"] = 0.0
    return config.replace(network=kind, network_options=network, method_options=own, imbalance=None)


def learning(config: TrainConfig) -> str:
    """What two steps on one image of each class depend on."""
    names = ("data", "network", "network_options", "method", "method_options", "epochs")
    names += ("augment", "augment_views", "sampler", "mixup_alpha", "cutmix_alpha", "precision")
    return repr({key: config.as_dict()[key] for key in names})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, and the lists of every data set that name one of them for each class."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(ROWS):
        pixels = torch.randint(256, (40, 44, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{index}.png")
    for source in SOURCES.values():
        lines = [f"{label % ROWS}.png {label}\n" for label in range(source.classes)]
        (root / source.train_list).write_text("".join(lines))
        (root / source.test_list).write_text(lines[0])
    return root


def data_for(config: TrainConfig, folder: Path) -> LongTailedData:
    """A data set with the recipe's classes, each with one image."""
    if config.data in SOURCES:
        return load(config.data, root=folder, **SMALL)
    classes = int(re.findall(r"\d+", config.data)[0])
    images = torch.randint(256, (classes, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    part = (images, torch.arange(classes))
    names = tuple(str(index) for index in range(classes))
    counts = torch.ones(classes, dtype=torch.int64)
    return LongTailedData(config.data, part, part, counts, classes, "image", names,
                          pixel_mean=(0.5,) * 3, pixel_deviation=(0.2,) * 3)  # fmt: skip


def settle(network: torch.nn.Module, inputs: torch.Tensor) -> None:
    """Have batch norm's statistics be those of `inputs`: a new network's fit nothing, and a second stage uses them."""
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for part in norms:
        part.train()
        part.momentum = 1.0
    with torch.no_grad():
        network(inputs)
    for part in norms:
        part.momentum = 0.1


def learn(config: TrainConfig, data: LongTailedData) -> list[float]:
    """The losses of two steps, and of two more in the second stage if there is one."""
    torch.set_num_threads(1)
    module = build_module(config.replace(lr=1e-3), data)
    rows = torch.arange(ROWS)
    batch = (data.train[0].index_select(0, rows), data.train[1][rows])
    many = augment(config.augment, batch[0].repeat(8, 1, 1, 1))
    losses = []
    last = total_epochs(config.method, config.epochs, config.method_options) - 1
    for epoch in (0, last) if last >= config.epochs else (0,):
        settle(module.network, many)
        module.apply_epoch(epoch)
        module.train()
        optimizer = module.configure_optimizers()
        for step in range(2):
            optimizer.zero_grad()
            loss = module.training_step(batch, step)["loss"]
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert all(bool(parameter.isfinite().all()) for parameter in module.head.parameters())
    return losses


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_exists(name: str) -> None:
    settings = settings_of(name)
    config = make_config(settings)
    assert config.data in READERS
    assert name.startswith(config.data)
    assert config.imbalance is None or name.startswith(f"{config.data}-{config.imbalance:g}")
    assert NETWORKS[config.network][0] == "image"
    assert config.augment in AUGMENTATIONS
    for method in [*settings.get("methods", {}), *methods_of(name)]:
        used = config_of(settings, method, 0)
        assert find_method(used.method).views == 1 or config.augment != "none"
    for milestone in config.milestones:
        assert milestone < config.epochs
    text = RECIPES[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 175


@pytest.mark.parametrize("path", every_recipe().values(), ids=lambda path: path.stem)
def test_every_recipe_is_a_config_for_every_method_it_names(path: Path) -> None:
    settings = read_settings(path)
    for method in ["ce", *settings.get("methods", {})]:
        config = make_config({**settings, "method": method})
        method_options(method, config.method_options)


@pytest.mark.parametrize("ending", PUBLISHED)
def test_settings_are_the_published_ones(ending: str) -> None:
    of_cifar = ("lt-100", "-arb")
    found = [name for name in RECIPES if name.endswith(ending) and (ending not in of_cifar or name.startswith("cifar"))]
    assert found
    for name in found:
        config = make_config(settings_of(name))
        for key, value in PUBLISHED[ending].items():
            kept = getattr(config, key)
            assert (value.items() <= kept.items()) if isinstance(value, dict) else kept == value, (name, key)


def test_ways_to_say_how_long_a_second_stage_is() -> None:
    expected = {("imagenet-lt", "crt"): 10, ("imagenet-lt", "lws"): 5, ("inaturalist2018", "crt"): 30,
                ("inaturalist2018", "lws"): 5, ("imagenet-lt-mislas", "mislas"): 10, ("places-lt-mislas", "mislas"): 10,
                ("inaturalist2018-mislas", "mislas"): 10, ("cifar10-lt-50-mislas", "mislas"): 10}  # fmt: skip
    for (name, method), epochs in expected.items():
        config = make_config({**settings_of(name), "method": method})
        assert total_epochs(method, config.epochs, config.method_options) - config.epochs == epochs


def test_hard_classes_are_as_many_as_published() -> None:
    expected = {"cifar10-lt-100-ncl": (10, 3), "cifar100-lt-50-ncl": (100, 30), "imagenet-lt-ncl": (1000, 300),
                "places-lt-ncl": (365, 122), "inaturalist2018-ncl": (8142, 2442)}  # fmt: skip
    for name, (classes, hard) in expected.items():
        assert round(settings_of(name)["methods"]["ncl"]["hard_share"] * classes) == hard


def test_imbalances_of_one_family_differ_in_what_they_must() -> None:
    for name in RECIPES:
        if "-lt-100" not in name:
            continue
        family = [name.replace("-lt-100", f"-lt-{imbalance}") for imbalance in (50, 20, 10, 1)]
        others = [other for other in family if other in RECIPES]
        assert len(others) >= 2
        for recipe in others:
            first, other = settings_of(name), settings_of(recipe)
            for key in ("imbalance", "variants", "methods"):
                first.pop(key, None), other.pop(key, None)
            assert first == other


# Every method of every recipe, and of those that come to the same two steps the first.
DISTINCT = {
    learning(reduced(name, method)): (name, method) for name in reversed(RECIPES) for method in methods_of(name)
}


@pytest.mark.parametrize(("name", "method"), sorted(DISTINCT.values()))
def test_two_steps(name: str, method: str, folder: Path) -> None:
    config = reduced(name, method)
    assert all(math.isfinite(loss) and loss > 0 for loss in learn(config, data_for(config, folder)))


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_every_recipe_are_among_them(name: str) -> None:
    assert all(learning(reduced(name, method)) in DISTINCT for method in methods_of(name))
