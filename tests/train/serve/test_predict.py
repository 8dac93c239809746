"""lt-kernels predict: probabilities of the run's own prediction, under any prior, and of pictures in files."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import class_folders
from PIL import Image

from lt_kernels import cli, posthoc
from lt_kernels.heads.scale import scale_of
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.tensors import read_sealed, write_sealed
from lt_kernels.train.methods.build import method_names
from lt_kernels.train.model import readings
from lt_kernels.train.model.predictions import predict
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.checkpoint import read_checkpoint
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run
from lt_kernels.train.serve import predict as predict_command
from lt_kernels.train.serve.priors import prior_of
from lt_kernels.train.serve.scoring import scorer_of
from lt_kernels.train.shift.evaluate import held_prior, logit_scale

QUICK = TrainConfig(epochs=2, batch_size=32, lr=0.05, warmup_epochs=1, threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in ("bs", "tau-norm"):
        train_run(QUICK.replace(method=method), root / method)
    return root


def lines(words: list[str], out: Path) -> list[list[str]]:
    assert cli.main(["predict", *words, "--out", str(out)]) == 0
    with out.open(newline="") as file:
        return list(csv.reader(file))


def shares(table: list[list[str]], classes: int = 10) -> torch.Tensor:
    """All probabilities of a file whose lines have all classes, by class, [N, C]."""
    first = len(table[0]) - 2 * classes
    found = torch.zeros(len(table) - 1, classes, dtype=torch.float64)
    for place, cells in enumerate(table[1:]):
        for name, share in zip(cells[first::2], cells[first + 1 :: 2]):
            found[place, int(name)] = float(share)
    return found


def test_the_test_set_gets_the_softmax_of_its_logits(runs: Path, tmp_path: Path) -> None:
    _, data, module = load_run(runs / "bs")
    table = lines([str(runs / "bs"), "--top", "10"], tmp_path / "new" / "p.csv")
    with torch.inference_mode():
        expected = module(data.test[0]).softmax(1)
    assert table[0][:4] == ["input", "class", "class_1", "probability_1"]
    assert torch.allclose(shares(table).float(), expected, atol=1e-6)
    assert [int(cells[2]) for cells in table[1:]] == predict(module, data.test[0]).tolist()
    assert [int(cells[1]) for cells in table[1:]] == data.test[1].tolist()


def test_another_prior_multiplies_the_odds_by_it(runs: Path, tmp_path: Path) -> None:
    """Logits of balanced softmax hold a uniform prior: p(c | x) under q is p(c | x) q_c over its sum (Bayes)."""
    run, counts = str(runs / "bs"), load_run(runs / "bs")[1].class_counts.double()
    own = shares(lines([run, "--top", "10"], tmp_path / "own.csv"))
    even = shares(lines([run, "--top", "10", "--prior", "uniform"], tmp_path / "even.csv"))
    train = shares(lines([run, "--top", "10", "--prior", "train"], tmp_path / "train.csv"))
    assert torch.allclose(even, own, atol=1e-5)
    expected = own * counts
    assert torch.allclose(train, expected / expected.sum(1, keepdim=True), atol=1e-5)
    (tmp_path / "prior.csv").write_text("class,prior\n" + "".join(f"{c},{int(c != 3)}\n" for c in reversed(range(10))))
    without = shares(lines([run, "--top", "10", "--prior", str(tmp_path / "prior.csv")], tmp_path / "3.csv"))
    rest = own * (torch.arange(10) != 3)
    assert torch.allclose(without, rest / rest.sum(1, keepdim=True), atol=1e-5)


def test_pictures_of_the_test_set_are_predicted_as_the_test_set(runs: Path, tmp_path: Path) -> None:
    """Scans have 17 levels of grey, so that a picture of 256 has them to half a level: classes are the same."""
    _, data, module = load_run(runs / "bs")
    levels = data.test[0][:20] * data.facts["pixel_deviation"] + data.facts["pixel_mean"]
    (tmp_path / "scans" / "below").mkdir(parents=True)
    (tmp_path / "scans" / "notes.txt").write_text("no picture")
    for place, scan in enumerate((levels[:, 0] * 255).round().to(torch.uint8).numpy()):
        Image.fromarray(scan).save(tmp_path / "scans" / ("below" if place > 9 else "") / f"{place:02d}.png")
    table = lines([str(runs / "bs"), "--input", str(tmp_path / "scans"), "--top", "10"], tmp_path / "p.csv")
    assert [Path(cells[0]).name for cells in table[1:]] == [f"{place:02d}.png" for place in range(20)]
    with torch.inference_mode():
        expected = module(data.test[0][:20]).softmax(1)
    assert torch.allclose(shares(table).float(), expected, atol=5e-3)
    assert [int(cells[1]) for cells in table[1:]] == predict(module, data.test[0][:20]).tolist()


def test_colours_become_grey_as_pillow_makes_them(tmp_path: Path) -> None:
    from lt_kernels.train.serve.pictures import GreyList

    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "one.png")
    grey = GreyList([str(tmp_path / "one.png")], "", 8, 8)
    assert grey.shape == (1, 1, 8, 8)
    expected = torch.from_numpy(np.array(Image.fromarray(colours).convert("L")))
    assert (grey[0][0].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("lazy", [True, False])
def test_photographs_are_cut_as_the_test_set_is(lazy: bool, tmp_path: Path) -> None:
    """Their shorter side is scaled to 12 pixels and the middle 8 are cut out, also where they are kept in memory."""
    draw = np.random.default_rng(0)
    for part, label, number in (("train", "a", 8), ("train", "b", 4), ("test", "a", 3), ("test", "b", 3)):
        (tmp_path / part / label).mkdir(parents=True)
        for place in range(number):
            pixels = draw.integers(0, 256, (20, 24 + place, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / label / f"{place}.png")
    options = {"root": str(tmp_path), "resize": 12, "train_crop": 8, "crop": 8, "lazy": lazy}
    train_run(QUICK.replace(data="folder", data_options=options), tmp_path / "run")
    run = str(tmp_path / "run")
    known, found = (
        lines([run, *words], tmp_path / "p.csv") for words in ([], ["--input", str(tmp_path / "test"), "--top", "2"])
    )
    assert [cells[2:] for cells in known] == [cells[1:] for cells in found]
    assert {cells[1] for cells in known[1:]} == {"a", "b"} == set(found[1][1::2])


def test_names_that_a_spreadsheet_would_compute_are_quoted(runs: Path) -> None:
    data = dataclasses.replace(load_run(runs / "bs")[1], class_names=("=1+1", *map(str, range(1, 10))))
    text = predict_command.table([("=a.png", ([0, 1], [0.75, 0.25]))], data, 2, torch.tensor([0]))
    assert text.splitlines()[1] == "'=a.png,'=1+1,'=1+1,0.75,1,0.25"
    (runs / "prior.csv").write_text("class,prior\n'=1+1,1\n" + "".join(f"{name},0\n" for name in range(1, 10)))
    prior = prior_of(str(runs / "prior.csv"), data)
    assert prior is not None
    assert prior[0] == 1


def test_a_run_whose_classes_have_other_names_now_is_refused(runs: Path, tmp_path: Path) -> None:
    config, data, _ = load_run(runs / "bs")
    renamed = dataclasses.replace(data, class_names=("zero", *data.class_names[1:]))
    message = "is of a run on other data: class names differ for 1 of 10: '0' is now 'zero'$"
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(runs / "bs" / "last.ckpt", config, renamed)
    turned = dataclasses.replace(data, class_names=data.class_names[::-1])
    message = "class names differ for 10 of 10: '0' is now '9'; '1' is now '8'; '2' is now '7', ...$"
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(runs / "bs" / "last.ckpt", config, turned)
    earlier = read_sealed(runs / "bs" / "last.ckpt")
    del earlier["lt_kernels"]["classes"]
    write_sealed(earlier, tmp_path / "earlier.ckpt")
    with pytest.raises(ConfigError, match="class names are others"):
        read_checkpoint(tmp_path / "earlier.ckpt", config, renamed)
    del earlier["lt_kernels"]["data"]["class names"]
    write_sealed(earlier, tmp_path / "earlier.ckpt")
    assert read_checkpoint(tmp_path / "earlier.ckpt", config, renamed)["epoch"] == 1


def test_classes_that_were_changed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of pictures: one is renamed, and then has another number of pictures."""
    options = class_folders.draw(tmp_path, {"train/ant": 4, "train/bee": 4, "test/ant": 1, "test/bee": 1})
    train_run(QUICK.replace(data="folder", data_options=options), tmp_path / "run")
    assert cli.main(words := ["predict", str(tmp_path / "run")]) == 0
    for part in ("train", "test"):
        (tmp_path / part / "bee").rename(tmp_path / part / "wasp")
    assert cli.main(words) == 2
    assert "run on other data: class names differ for 1 of 2: 'bee' is now 'wasp'\n" in capsys.readouterr().err
    for part in ("train", "test"):
        (tmp_path / part / "wasp").rename(tmp_path / part / "bee")
    (tmp_path / "train" / "bee" / "3.png").rename(tmp_path / "train" / "ant" / "4.png")
    assert cli.main(words) == 2
    counts = "class counts differ for 2 of 2: 'ant' had 4, and has 5; 'bee' had 4, and has 3\n"
    assert counts in capsys.readouterr().err


def test_wrong_words(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("class,prior\n0,1\n0,1\n")
    (tmp_path / "empty").mkdir()
    cases = [
        (["bs", "--top", "11"], "--top must be from 1 to the 10 classes of the run, got 11"),
        (["bs", "--prior", "even"], "--prior must be uniform, train or a CSV file"),
        (["bs", "--prior", str(bad)], "line 3 must name a class of the run that no line before names, got '0'"),
        (["bs", "--input", str(tmp_path / "none")], "which is missing"),
        (["bs", "--input", str(tmp_path / "empty")], "with none"),
        (["bs", "--input", str(bad)], "cannot be read as a picture"),
        (["tau-norm"], "the method must have probabilities, got tau-norm"),
        (["none"], "folder must be that of a finished run"),
    ]
    for (name, *words), message in cases:
        assert cli.main(["predict", str(runs / name), *words, "--out", str(tmp_path / "p.csv")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("method", method_names())
def test_every_method_has_probabilities_or_says_why_not(method: str) -> None:
    """Where another prior can replace the one that the logits hold, it is what `shift` compensates for."""
    config = QUICK.replace(method=method)
    data = load_data(config)
    module = build_module(config, data).eval()
    inputs, prior = data.test[0][:4], torch.arange(1.0, 11.0)
    if method in ("tau-norm", "wvn-rs", "ce-rs", "ncm"):
        with pytest.raises(ConfigError, match="must have probabilities"):
            scorer_of(config, data, module)
        return
    with torch.inference_mode():
        own = scorer_of(config, data, module)(inputs)
        assert torch.allclose(own.sum(1), torch.ones(4))
        assert torch.equal(own.argmax(1), predict(module, inputs))
        held = held_prior(config, data.class_counts, module, "scale")
        if held is None:
            with pytest.raises(ConfigError, match="--prior must be left out"):
                scorer_of(config, data, module, prior)
            return
        logits = logit_scale(method, module, "scale") * module(inputs)
        assert torch.allclose(scorer_of(config, data, module, prior)(inputs), posthoc.pc_softmax(logits, held, prior))
    assert scale_of(readings.trained_head(module)) == logit_scale(method, module, "scale")
