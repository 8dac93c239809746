"""The published figures: every row of a method that is here has a recipe with its data, network, epochs and method."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.train.config import make_config
from lt_kernels.train.listing import command
from lt_kernels.train.methods.build import find_method, method_names
from lt_kernels.train.methods.method import REPULSION_SUFFIX
from lt_kernels.train.methods.variants import config_of, variants_of
from lt_kernels.train.published import Figure, figures, figures_for, fits, methods_not_here, network_name
from lt_kernels.train.recipes import apply_overrides, every_recipe, find_recipe, read_settings

# Methods of the tables that are not here, and "best before": the highest of others.
NOT_HERE = {
    "ala": 2, "bbn": 7, "best before": 6, "best of ce, causal norm, bs": 11, "cost-sensitive": 1, "difficulty-net": 1,
    "disalign": 4, "fslwf": 2, "glmc": 3, "kcl": 1, "lfme": 1, "lifted": 2, "metamodelnet": 1, "model-reg": 1,
    "oltr": 8, "paco": 1, "range": 3, "remix-drw": 5, "ride": 4, "the same, compensated": 11, "tsc": 1, "yu": 6,
}  # fmt: skip
# Rows of the five papers' tables, and of the READMEs of other authors' code.
SOURCES = {
    "Logit weight repulsion poster": 28,
    "DBM, Son et al. 2025": 195,
    "ARB-Loss, Xie et al. 2023": 76,
    "Estimated offset, Kim, Hong and Kim": 56,
    "LADE poster, Hong et al. 2021": 51,
}
CARRIED = [figure for figure in figures() if figure.recipe]


def is_here(figure: Figure) -> bool:
    return figure.measure != "settings" and figure.method not in NOT_HERE


def test_the_tables_are_whole() -> None:
    found = collections.Counter(figure.source for figure in figures())
    assert {source: found[source] for source in SOURCES} == SOURCES
    assert sum(SOURCES.values()) == 406
    assert len(figures()) == 406 + 48
    assert sum(figure.measure == "settings" for figure in figures()) == 7


def test_every_row_of_a_method_that_is_here_has_a_recipe() -> None:
    rows = [figure for figure in figures() if is_here(figure)]
    assert len(rows) == 365
    assert [row for row in rows if not row.recipe] == []
    assert [row for row in CARRIED if not is_here(row)] == []


def test_the_others_are_counted() -> None:
    others = collections.Counter(
        figure.method for figure in figures() if not is_here(figure) and figure.measure != "settings"
    )
    assert dict(others) == NOT_HERE
    assert sum(others.values()) == 82
    assert set(NOT_HERE) & set(method_names()) == set()
    best = {"best before", "best of ce, causal norm, bs", "the same, compensated"}
    assert set(methods_not_here()) == set(NOT_HERE) - best
    assert methods_not_here()["paco"] == ["DBM, Son et al. 2025, supplement table 4"]


@pytest.mark.parametrize("recipe", sorted({figure.recipe for figure in CARRIED}))
def test_a_recipe_has_the_settings_of_its_rows(recipe: str) -> None:
    settings = read_settings(find_recipe(recipe))
    for figure in CARRIED:
        if figure.recipe != recipe:
            continue
        config = config_of(settings, figure.method, 0)
        assert fits(figure, config.as_dict()), figure
        assert figure in figures_for(config.as_dict(), figure.method, figure.measure)
        known = {*method_names(), *variants_of(settings)}
        assert figure.method in known or figure.method.removesuffix(REPULSION_SUFFIX) in known
        words = command(figure, settings).split()
        assert words[:4] == ["lt-kernels", "train", "--config", recipe]
        changes = [word for word in words[4:] if word != "--set"]
        assert make_config(apply_overrides(settings, changes)) == config, figure


def test_figures_are_percentages_with_a_source() -> None:
    for figure in figures():
        values = [value for value in (figure.all, figure.many, figure.medium, figure.few) if value is not None]
        if figure.measure == "settings":
            assert not values
            continue
        assert figure.all is not None
        assert all(0 < value < 100 for value in values)
        assert re.search(r"\b20\d\d\b", figure.source) or figure.source.startswith(("Logit", "Estimated"))
        assert figure.table
        if len(values) == 4:  # a mean of groups lies between them
            assert min(values[1:]) <= figure.all <= max(values[1:]), figure
        if figure.recipe and figure.measure != "settings":
            find_method(figure.method if not figure.method.startswith(("lwr-", "cb-focal", "dbm-")) else "ce")


def test_a_wide_network_has_the_tables_name() -> None:
    wide = {"network": "resnet32", "network_options": {"width": 64}}
    assert network_name(wide) == "resnet32x4"
    assert network_name({"network": "resnet32"}) == "resnet32"
    assert network_name({"network": "resnet50", "network_options": {"width": 64}}) == "resnet50"


def test_rates_are_those_that_the_papers_state_or_the_recipe_says_so() -> None:
    rows = {(one.data, one.method): one.note for one in figures() if one.measure == "settings"}
    recipes = {("cityscapes", "arb"): ["cityscapes-unet", "cityscapes-deeplabv3plus"]}
    for data, ending in (("imagenet-lt", "imagenet-lt"), ("inaturalist2018", "inaturalist2018")):
        recipes |= {(data, method): [f"{ending}-{method}"] for method in ("bcl", "gml")}
    large = ["imagenet-lt-arb", "places-lt-arb", "inaturalist2018-arb", "inaturalist2018-arb-resnet152"]
    recipes["imagenet-lt, places-lt, inaturalist2018", "arb-mixup"] = large
    recipes["cifar", "arb-batch-mixup"] = [name for name in every_recipe() if re.fullmatch(r"cifar.*-arb", name)]
    assert recipes.keys() == rows.keys()
    for row, names in recipes.items():
        (stated,) = map(float, re.findall(r"(?:rate|cosine from) ([0-9.]+)\b", rows[row]))
        for name in names:
            rate = read_settings(find_recipe(name))["lr"]
            said = f"the paper states a rate of {stated:g} in the place of {rate:g}"
            text = find_recipe(name).read_text(encoding="utf-8").replace("\n#", "")
            assert (said in text) == (rate != stated), name


def test_figures_are_found_for_a_run() -> None:
    config = {"data": "cifar100-lt", "imbalance": 100.0, "network": "resnet32", "epochs": 200}
    texts = {figure.where(): figure.text() for figure in figures_for(config, "dbm-bs")}
    assert texts == {
        "DBM, Son et al. 2025, table 2": "51.3 (67.29, 50.8, 33.23)",
        "DBM, Son et al. 2025, table 5": "51.3",
        "DBM, Son et al. 2025, supplement table 2": "45.0",
    }
    assert figures_for({**config, "imbalance": 20.0}, "dbm-bs")[0].all == 56.6
    assert figures_for({**config, "epochs": 100}, "ncl") == []
    assert figures_for(config, "ncl") == []  # of 400 epochs
    assert figures_for({**config, "data": "digits-lt"}, "dbm-bs") == []


def test_figures_of_scenes_have_both_measures() -> None:
    """Xie et al. (2023), table 3, by literal numbers: the accuracy of pixels gains where the mIoU hardly does."""
    texts = {(one.network, one.method): (one.text(), one.where()) for one in figures() if one.measure == "miou"}
    assert texts == {
        ("unet", "ce"): ("67.6 (mAcc 74.6)", "ARB-Loss, Xie et al. 2023, table 3"),
        ("unet", "arb"): ("67.9 (mAcc 79.7)", "ARB-Loss, Xie et al. 2023, table 3"),
        ("deeplabv3plus", "ce"): ("79.3 (mAcc 86.3)", "ARB-Loss, Xie et al. 2023, table 3"),
        ("deeplabv3plus", "arb"): ("79.5 (mAcc 89.0)", "ARB-Loss, Xie et al. 2023, table 3"),
    }


def test_the_command_lists_recipes_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    names = list(every_recipe())
    assert f"{len(names)} recipes" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.split() and line.split()[0] in names] == names
    assert cli.main(["recipes", "--published"]) == 0
    shown = capsys.readouterr().out
    assert f"{len(CARRIED)} published figures" in shown
    assert shown.count("lt-kernels train --config ") == len(CARRIED)
    assert cli.main(["recipes", "cifar10-lt-100-ncl", "--published"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "ncl" in line]
    assert [" ".join(line) for line in lines] == [
        "DBM, Son et al. 2025, table 2 cifar10-lt 100 resnet32 ncl 87.37 accuracy [%] "
        "lt-kernels train --config cifar10-lt-100-ncl --set method=ncl",
        "DBM, Son et al. 2025, table 2 cifar10-lt 100 resnet32 dbm-ncl 87.53 accuracy [%] "
        "lt-kernels train --config cifar10-lt-100-ncl",
    ]


def test_a_recipe_is_printed_with_all_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["recipes", "cifar10-lt-50-ldam"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert read_settings(tmp_path / "mine.yaml") == read_settings(find_recipe("cifar10-lt-50-ldam"))
    assert (tmp_path / "mine.yaml").read_text().startswith("# CIFAR-10-LT at imbalance 50")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text("# Mine.\nbase: digits-lt.yaml\nepochs: 3\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "own.yaml"]) == 0
    assert "epochs: 3" in capsys.readouterr().out
    assert cli.main(["recipes", "cifar10-lt-50-ldm"]) == 2
    assert "did you mean 'cifar10-lt-50-ldam'" in capsys.readouterr().err
