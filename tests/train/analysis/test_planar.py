"""Features of two numbers: what is drawn is what the trained classifier predicts, the same every time."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.train.analysis.planar import PlanarNetwork, Plane, picture, train_planar, write_planes
from lt_kernels.train.analysis.plane_defaults import in_the_plane
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.variants import config_of
from lt_kernels.train.output import figures
from lt_kernels.train.recipes import find_recipe, read_settings

CONFIG = TrainConfig(method="bs", epochs=3, warmup_epochs=0, lr=0.05, batch_size=32, threads=1)


@pytest.fixture(scope="module")
def plane() -> Plane:
    return train_planar(CONFIG)


def test_features_have_any_sign() -> None:
    torch.manual_seed(1)
    features = PlanarNetwork(5)(torch.randn(64, 5))
    assert features.shape == (64, 2)
    assert bool((features < 0).any(0).all())
    assert bool((features > 0).any(0).all())


def test_a_plane_is_what_the_classifier_predicts(plane: Plane) -> None:
    assert plane.features.shape == (500, 2)
    assert plane.weight.shape == (10, 2)
    assert plane.counts.tolist() == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
    assert np.array_equal(plane.region(plane.features), plane.prediction)
    assert (plane.prediction == plane.target).mean() > 0.2
    # far from the origin a bias counts for nothing: the class is that of the largest product
    far = 1e6 * np.array([[np.cos(angle), np.sin(angle)] for angle in np.linspace(0, 6, 25)])
    assert np.array_equal(plane.region(far), (far @ plane.weight.T).argmax(1))


def test_the_same_seed_gives_the_same_plane_and_leaves_the_generators(plane: Plane) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_planar(CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(again.features, plane.features)
    assert np.array_equal(again.weight, plane.weight)
    other = train_planar(CONFIG.replace(seed=1))
    assert not np.array_equal(other.features, plane.features)


@pytest.mark.parametrize("method", ["ldam-drw", "bs-lwr", "crt", "estimated-offset"])
def test_any_method_with_one_network_may_be_drawn(method: str) -> None:
    options: dict[str, Any] = {"lwr_threshold": 0.0} if method == "bs-lwr" else {}
    found = train_planar(CONFIG.replace(method=method, method_options=options, epochs=2))
    assert np.isfinite(found.features).all()
    assert np.array_equal(found.region(found.features), found.prediction)
    if method == "ldam-drw":
        assert np.linalg.norm(found.weight, axis=1) == pytest.approx(np.ones(10))


def test_centred_features_have_mean_zero_and_a_single_row_is_left_as_it_is() -> None:
    torch.manual_seed(1)
    inputs, network = torch.randn(64, 5), PlanarNetwork(5, centred=True)
    features = network(inputs)
    assert features.mean(0).abs().max().item() < 1e-5
    assert features.var(0, unbiased=False).detach().numpy() == pytest.approx(np.ones(2), abs=0.01)
    assert torch.equal(network(inputs[:1]), network.layers(inputs[:1]))
    assert not list(network.norm.parameters())  # type: ignore[union-attr]


MARGINS = ("ldam", "ldam-drw", "dbm-ce", "dbm-bs", "dbm-drw", "cosface", "arcface")


@pytest.mark.parametrize("method", MARGINS)
def test_a_margin_leaves_the_classes_apart_in_the_plane(method: str) -> None:
    settings = in_the_plane(read_settings(find_recipe("digits-lt")), method)
    found = train_planar(config_of({**settings, "epochs": 60, "threads": 1}, method, 0))
    assert (found.prediction == found.target).mean() > 0.2  # twice as often as by chance, in a fifth of the epochs
    length = np.linalg.norm(found.features, axis=1, keepdims=True)
    assert np.linalg.norm((found.features / length).mean(0)) < 0.9  # 1 on one ray
    assert length.max() < 20


def test_heads_of_cosines_have_settings_of_their_own_which_may_be_changed() -> None:
    settings = {"lr": 0.1, "epochs": 100, "methods": {"dbm-bs": {"tau": 2.0}, "cosface": {"scale": 9.0}}}
    settings["variants"] = {"wide": {"method": "dbm-bs", "max_margin": 0.3}}
    assert in_the_plane(settings, "bs") == settings
    for name in ("dbm-bs", "wide"):
        found = in_the_plane(settings, name)
        assert found["methods"]["dbm-bs"] == {"scale": 8.0, "tau": 2.0}
        assert (found["lr"], found["epochs"]) == (0.01, 300)
    assert in_the_plane(settings, "cosface")["methods"]["cosface"] == {"scale": 9.0}
    assert in_the_plane(settings, "sphereface")["methods"] == settings["methods"]
    assert settings["methods"] == {"dbm-bs": {"tau": 2.0}, "cosface": {"scale": 9.0}}


def test_the_files_hold_the_numbers(plane: Plane, tmp_path: Path) -> None:
    write_planes([plane], tmp_path)
    with (tmp_path / "planar_weights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert np.array([[float(row["x"]), float(row["y"])] for row in rows]) == pytest.approx(plane.weight)
    assert [row["training_samples"] for row in rows][:2] == ["124", "74"]
    with (tmp_path / "planar_features.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 500
    assert [int(row["predicted"]) for row in points] == plane.prediction.tolist()
    pixels = image.imread(tmp_path / "planar.png")
    assert len(np.unique((255 * pixels[::3, ::3, :3]).astype(int) @ [65536, 256, 1])) > 50


def test_tick_labels_of_long_features_do_not_touch(plane: Plane) -> None:
    long = dataclasses.replace(plane, features=plane.features / np.abs(plane.features).max() * 123_456)
    figure: Any = picture([long, plane, long])
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert len(boxes) > 2
        assert all(left.x1 + 4 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_hundred_classes_have_a_picture() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(100, 2))
    target = np.repeat(np.arange(100), 2)
    points = weight[target] * 3 + random.normal(size=(200, 2))
    counts = np.geomspace(200, 1, 100).astype(int)
    made = Plane("ce", counts, points, target, target, weight, lambda places: (places @ weight.T).argmax(1))
    assert figures.png(picture([made, made])).startswith(b"\x89PNG")


def test_pictures_of_bytes_are_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits-lt", imbalance=10)
    mean, deviation = data.facts["pixel_mean"], data.facts["pixel_deviation"]

    def as_bytes(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return ((pair[0] * deviation + mean) * 255).round().to(torch.uint8), pair[1]

    parts = {"train": as_bytes(data.train), "test": as_bytes(data.test)}
    bytes_ = dataclasses.replace(data, **parts, pixel_mean=(mean,), pixel_deviation=(deviation,))
    monkeypatch.setattr("lt_kernels.train.analysis.planar.load_data", lambda config: bytes_)
    assert train_planar(CONFIG).features.shape == (500, 2)


def test_what_cannot_be_drawn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="one network and one weight a class, got 'ncl'"):
        train_planar(CONFIG.replace(method="ncl"))
    apart = SimpleNamespace(train=([1, 2], None), name="listed", input_kind="image")
    monkeypatch.setattr("lt_kernels.train.analysis.planar.load_data", lambda config: apart)
    with pytest.raises(ConfigError, match="--data must name a set that is held in memory, got listed"):
        train_planar(CONFIG)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["planar", "--data", "digits-lt", "--set", "epochs=2", "--set", "warmup_epochs=0", "--out", str(tmp_path)]
    assert cli.main([*words, "--methods", "ce,dbm-bs,bs-lwr"]) == 0  # the changes hold for heads of cosines too
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {tmp_path / 'planar.png'}"
    with (tmp_path / "planar_weights.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"ce", "dbm-bs", "bs-lwr"}
    with (tmp_path / "planar_directions.csv").open(newline="") as file:
        parts = {(row["method"], row["part"]) for row in csv.DictReader(file)}
    loss = {(name, part) for name in ("ce", "dbm-bs", "bs-lwr") for part in ("attraction", "repulsion")}
    assert parts == {*loss, ("bs-lwr", "regularizer")}
    assert (tmp_path / "planar_directions.png").exists()
    assert cli.main([*words, "--methods", "ce,bss"]) == 2
    assert "'bss'" in capsys.readouterr().err


def test_variants_are_drawn_by_their_names(tmp_path: Path) -> None:
    config = tmp_path / "few.yaml"
    config.write_text(
        "data: digits-lt\nimbalance: 10\nepochs: 1\nwarmup_epochs: 0\nthreads: 1\n"
        "variants:\n  raw: {method: bs-lwr, lwr_project: raw}\n  held: {method: bs-lwr, lwr_project: false}\n"
    )
    words = ["planar", "--config", str(config), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--methods", "bs,variants"]) == 0
    for name in ("planar_weights.csv", "planar_features.csv", "planar_directions.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            assert {row["method"] for row in csv.DictReader(file)} == {"bs", "raw", "held"}


def test_what_cannot_be_drawn_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lt_kernels.train.analysis.planar.train_planar", lambda config: pytest.fail("was trained"))
    words = ["planar", "--data", "digits-lt", "--out", str(tmp_path)]
    for methods in ("ce,ncl", "all"):
        assert cli.main([*words, "--methods", methods]) == 2
        assert "one network and one weight a class, got 'ncl'" in capsys.readouterr().err
