"""CLIP's image encoder as a network: features, adapters, what is trained, stored weights, runs of the recipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuts import cut
from helpers import normal
from tolerances import assert_close
from torch.nn import functional as F

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("PIL", reason="pillow, which matplotlib brings along, is not installed")
pytest.importorskip("transformers", reason="the extra [clip] is not installed: transformers")
pytest.importorskip("peft", reason="the extra [clip] is not installed: peft")

import transformers

from lt_kernels import cli
from lt_kernels.data import LongTailedData, load
from lt_kernels.data.cifar import ARCHIVES
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.model.clip import ClipImages
from lt_kernels.train.model.networks import Pixels, build_network
from lt_kernels.train.recipes import find_recipe, read_config
from lt_kernels.train.run.build import build_module
from lt_kernels.train.run.loading import load_run
from tests.data.test_images import write_cifar

SIZE = {"width": 16, "layers": 2, "heads": 2, "patch": 8, "image": 16}
TINY = "{rank: 2, size: {width: 16, layers: 2, heads: 2, patch: 8, image: 16}}"
RECIPES = ("imagenet-lt-clip", "cifar100-lt-100-clip")


def photographs(classes: int = 4, side: int = 16) -> LongTailedData:
    """Two images of each class, the same ones for training and test, with ImageNet's mean."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (2 * classes, 3, side, side), generator=generator, dtype=torch.uint8)
    part = (images, torch.arange(2 * classes) % classes)
    counts = torch.full((classes,), 2)
    names = tuple(str(index) for index in range(classes))
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return LongTailedData("tiny", part, part, counts, classes, "image", names, pixel_mean=mean,
                          pixel_deviation=deviation)  # fmt: skip


def stored(folder: Path) -> torch.nn.Module:
    """A small CLIP model with texts too, in float16, as published ones may be; saved in `folder`."""
    torch.manual_seed(1)
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**vision, "patch_size": 8, "image_size": 16}, projection_dim=8
    )
    model = transformers.CLIPModel(config).eval()
    model.half().save_pretrained(folder)
    return model.float()


def test_the_encoder_has_the_published_size() -> None:
    """Radford et al. (2021), ViT-B/16: 12 layers of width 768 on 14 x 14 patches and a class token."""
    with torch.device("meta"):
        network = ClipImages(rank=0)
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    assert sum(part.numel() for part in network.parameters()) == (
        12 * layer + 768 * (1 + 14 * 14 + 1) + 3 * 16 * 16 * 768 + 2 * 2 * 768
    )
    assert (network.out_features, network.image) == (768, 224)


def test_features_are_those_of_the_stored_model(tmp_path: Path) -> None:
    model = stored(tmp_path)
    images = normal(3, 3, 16, 16, seed=2).float()
    expected = model.vision_model(pixel_values=images).pooler_output
    network = ClipImages(weights=str(tmp_path), rank=0)
    assert_close(network(images), expected)
    adapted = ClipImages(weights=str(tmp_path), rank=3)
    assert_close(adapted(images), expected)  # B is 0
    assert all(part.dtype == torch.float32 for part in adapted.parameters())


def test_an_adapter_adds_a_product_of_low_rank() -> None:
    torch.manual_seed(0)
    network = ClipImages(rank=2, alpha=6.0, size=SIZE).double()
    layers = network.encoder.encoder.layers
    for layer in layers:
        for name in ("q_proj", "v_proj"):
            part = getattr(layer.self_attn, name)
            down, up = part.lora_A["default"].weight, part.lora_B["default"].weight
            assert (down.shape, up.shape) == ((2, 16), (16, 2))
            assert (up == 0).all()
            torch.nn.init.normal_(up)
            input = normal(5, 16, seed=1)
            own = input @ part.base_layer.weight.T + part.base_layer.bias
            assert_close(part(input), own + 3.0 * input @ down.T @ up.T)
    assert not hasattr(layers[0].self_attn.k_proj, "lora_A")


def test_only_adapters_and_head_are_trained() -> None:
    data = photographs()
    config = TrainConfig(network="clip-vit-b16", network_options={"rank": 2, "size": SIZE}, method="dbm-bs", lr=0.5)
    module = build_module(config, data).train()
    assert module.training
    assert not any(part.training for part in module.network.network.encoder.modules())
    optimizer = module.configure_optimizers()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in trained}
    assert len(names) == 2 * 2 * 2 + 1
    assert all("lora" in name or name.startswith("head.") for name in names)
    before = {name: value.clone() for name, value in module.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        module.training_step((data.train[0], data.train[1]), step)["loss"].backward()
        optimizer.step()
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == names


def test_pictures_are_scaled_to_the_encoder_and_centred_by_its_mean() -> None:
    data = photographs(side=8)
    torch.manual_seed(0)
    network = build_network("clip-vit-b16", data, rank=0, size=SIZE)
    assert isinstance(network, Pixels)
    images = data.train[0].float() / 255
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    centred = (images - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    scaled = F.interpolate(centred, size=(16, 16), mode="bicubic", align_corners=False)
    expected = network.network.encoder(pixel_values=scaled).pooler_output
    assert_close(network(data.train[0]), expected)


@pytest.mark.parametrize(("options", "message"), [
    ({"weights": "nowhere"}, "weights must be a folder of a CLIP model with its config.json, got 'nowhere'"),
    ({"weights": "nowhere", "size": SIZE}, "size must be left out where weights are given"),
    ({"size": {"depth": 2}}, "size must be one of 'width', 'layers', .*got 'depth'"),
    ({"size": {"width": 0}}, "size.width must be .*got 0"),
    ({"size": {"image": 100}}, "size.image must be a multiple of size.patch = 16, got 100"),
    ({"rank": -1}, "rank must be .*got -1"),
    ({"alpha": -1.0}, r"alpha must be .*got -1\.0"),
    ({"in_channels": 1}, "inputs must have 3 channels for CLIP, got 1"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipImages(**options)


def test_weights_that_lack_a_part_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights must have a whole image encoder, .* lacks .*layers\.1\.mlp"):
        ClipImages(weights=str(tmp_path))
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="weights must be a folder of a CLIP model, got"):
        ClipImages(weights=str(tmp_path))


@pytest.mark.parametrize("name", ["transformers", "peft"])
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = TrainConfig(network="clip-vit-b16", network_options={"rank": 2, "size": SIZE})
    with pytest.raises(ConfigError, match=rf"clip-vit-b16 needs {name}: pip install 'lt-kernels\[clip\]'"):
        build_module(config, photographs())


def test_numbers_that_are_no_pixels_are_refused() -> None:
    pair = (torch.rand(2, 3, 8, 8), torch.arange(2))
    data = LongTailedData("numbers", pair, pair, torch.tensor([1, 1]), 2, "image", ("a", "b"))
    with pytest.raises(ValueError, match=r"name must be .*takes numbers for numbers, got 'clip-vit-b16', which takes"):
        build_network("clip-vit-b16", data, rank=0, size=SIZE)
    with pytest.raises(ValueError, match=r"name must be one of .* for the words inputs"):
        build_network("clip-vit-b16", load("stdlib-words", num_classes=20, max_tokens=40000, test_per_class=2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """For each recipe the changes that let it run on generated data of a thousand, or a hundred, classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        pixels = torch.randint(256, (20, 22, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{index}.png")
    lines = [f"{label % 3}.png {label}\n" for label in range(1000)]
    (root / "ImageNet_LT_train.txt").write_text("".join(lines))
    (root / "ImageNet_LT_test.txt").write_text("".join(lines[::200]))
    write_cifar(root / "cifar-100-python", 100, 100)
    sizes = "resize: 20, train_crop: 20, crop: 16, threads: 1"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ARCHIVES, "cifar100-lt", ARCHIVES["cifar100-lt"]._replace(per_class=100))
        yield {
            "imagenet-lt-clip": f"data_options={{root: {root}, lists: {root}, {sizes}}}",
            "cifar100-lt-100-clip": f"data_options={{root: {root}}}",
        }


def words_for(name: str, folders: dict[str, str], *more: str) -> list[str]:
    small = ["epochs=1", "epoch_steps=2", "batch_size=4", "threads=1", folders[name], f"network_options={TINY}", *more]
    changes = [word for change in small for word in ("--set", change)]
    return ["train", "--config", name, "--quiet", *changes]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["bs", "dbm-bs"])
def test_two_steps_of_each_recipe(name: str, method: str, folders: dict[str, str], tmp_path: Path) -> None:
    assert cli.main([*words_for(name, folders, f"method={method}"), "--out", str(tmp_path / "run")]) == 0
    result = read_result(tmp_path / "run")
    assert 0 <= result["accuracy"]["all"] <= 100
    _, data, module = load_run(tmp_path / "run")
    assert module(data.train[0].index_select(0, torch.arange(2))).isfinite().all()


def test_a_run_that_was_cut_goes_on_with_the_same_bits(folders: dict[str, str], tmp_path: Path) -> None:
    changes = ("epochs=2", "epoch_steps=3", "checkpoint_steps=1")
    words = words_for("cifar100-lt-100-clip", folders, *changes)
    assert cli.main([*words, "--out", str(tmp_path / "whole")]) == 0
    cut(4, lambda: cli.main([*words, "--out", str(tmp_path / "cut")]))
    assert cli.main([*words, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert any("lora_B" in name for name in whole["state_dict"])
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_the_recipes_have_the_settings_they_name() -> None:
    for name in RECIPES:
        config = read_config(find_recipe(name))
        assert (config.network, config.method, config.epochs, config.batch_size) == ("clip-vit-b16", "dbm-bs", 10, 128)
        assert config.network_options["weights"] == "data/clip-vit-base-patch16"
        make_config({**config.as_dict(), "method": "bs"})
