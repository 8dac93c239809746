"""lt-kernels export: files whose results are those of the run, on any number of inputs, without this package."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import class_folders

import lt_kernels
from lt_kernels import cli
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run
from lt_kernels.train.serve.export import exported
from lt_kernels.train.serve.pictures import pixels_of
from lt_kernels.train.serve.scoring import scorer_of

QUICK = TrainConfig(epochs=2, batch_size=32, lr=0.05, warmup_epochs=1, threads=1)
NOISE = ["ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch.*"]  # of the exporters
pytestmark = [pytest.mark.filterwarnings(one) for one in NOISE]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dbm-bs"
    train_run(QUICK.replace(method="dbm-bs", network="resnet32", network_options={"width": 4, "blocks": 1}), folder)
    return folder


def scans(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Test scans as bytes, and as the network takes them."""
    _, data, _ = load_run(folder)
    levels = data.test[0] * data.facts["pixel_deviation"] + data.facts["pixel_mean"]
    pixels = (levels * 255).round().to(torch.uint8)
    return pixels, (pixels.float() / 255 - data.facts["pixel_mean"]) / data.facts["pixel_deviation"]


def expected(folder: Path, inputs: torch.Tensor) -> torch.Tensor:
    """Written out: the scale of DBM's softmax times the cosines."""
    module = load_run(folder)[2]
    with torch.inference_mode():
        return float(module.head.loss.scale) * module(inputs)


def test_torch(run: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "new" / "m.pt2")]) == 0
    extra = {"about.json": ""}
    program = torch.export.load(tmp_path / "new" / "m.pt2", extra_files=extra)
    pixels, inputs = scans(run)
    for number in (1, 5, 500):
        found = program.module()(pixels[:number])
        assert torch.allclose(found, expected(run, inputs[:number]).softmax(1), atol=1e-5)
    about = json.loads(extra["about.json"])
    assert about["class_names"] == [str(digit) for digit in range(10)]
    assert (about["method"], about["output"], about["prior"]) == ("dbm-bs", "probabilities", "as trained")
    assert about["input"] == "uint8 [batch, 1, 8, 8], pixels 0 to 255"
    assert about["lt_kernels"] == lt_kernels.__version__


def test_a_run_with_one_test_picture(tmp_path: Path) -> None:
    """The file takes any number of pictures, though the example that it is traced with comes from the test set."""
    options = class_folders.draw(tmp_path, {"train/ant": 3, "train/bee": 3, "test/ant": 1, "test/bee": 0})
    train_run(QUICK.replace(data="folder", data_options=options, method="bs"), tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), "--format", "torch"]) == 0
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    _, data, module = load_run(tmp_path / "run")
    assert len(data.test[1]) == 1
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = module(pixels.float() / 255).softmax(1)
        for number in (1, 2, 5):
            assert torch.allclose(program(pixels[:number]), wanted[:number], atol=1e-5)


@pytest.mark.slow
def test_onnx(run: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    pixels, inputs = scans(run)
    counts = torch.tensor(load_run(run)[1].class_counts.tolist())
    shifted = (expected(run, inputs) + counts.log()).softmax(1)
    assert (
        cli.main(["export", str(run), "--format", "onnx", "--prior", "train", "--out", str(tmp_path / "m.onnx")]) == 0
    )
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["probabilities"]
    for number in (1, 5, 500):
        (found,) = session.run(None, {"input": pixels[:number].numpy()})
        assert torch.allclose(torch.from_numpy(found), shifted[:number], atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == [str(digit) for digit in range(10)]
    assert (about["method"], about["output"], about["prior"]) == ("dbm-bs", "probabilities", "train")


@pytest.mark.parametrize("method", ["bs", "ce-rs", "pc-softmax", "lws", "estimated-offset", "sphereface", "gml", "ncl"])
def test_each_kind_of_head_is_exported_without_operators_of_this_package(method: str) -> None:
    config = QUICK.replace(method=method)
    data = load_data(config)
    module = build_module(config, data).eval()
    scorer = scorer_of(config, data, module, first=pixels_of(data), logits=True).eval()
    pixels = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    program = exported(scorer, pixels[:2])
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(buffer).module()(pixels), scorer(pixels), atol=1e-5, rtol=1e-5)
    assert not [node for node in program.graph.nodes if "lt_kernels" in str(node.target)]


def test_wrong_words(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["export", str(run), "--format", "torch", "--logits", "--prior", "train"]) == 2
    assert "--prior must be left out with --logits, got 'train'" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    assert cli.main(["export", str(run), "--format", "onnx"]) == 2
    assert "ONNX needs onnxscript, which is not installed" in (said := capsys.readouterr().err)
    assert "pip install 'lt-kernels[export]'" in said
