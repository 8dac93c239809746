"""timm's networks by name: features, stored weights, pixels, sizes, errors, and runs that resume and are analysed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from cuts import cut

from lt_kernels import cli
from lt_kernels.data import LongTailedData
from lt_kernels.data.cifar import ARCHIVES
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.methods.variants import config_of, variants_of
from lt_kernels.train.model.networks import Pixels, build_network
from lt_kernels.train.model.timm_images import TimmImages
from lt_kernels.train.recipes import find_recipe, read_settings
from lt_kernels.train.run.build import build_module
from lt_kernels.train.run.loading import load_run
from tests.data.test_images import write_cifar

RECIPE = find_recipe("cifar100-lt-100-timm")


FINE_TUNED = ("imagenet-lt-timm", "cifar100-lt-100-timm")
# A transformer of the recipes' twelve blocks, without their width and their stored weights.
NARROW = {"embed_dim": 24, "num_heads": 2, "drop_path_rate": 0.1}


def photographs(classes: int = 4, side: int = 32, channels: int = 3, pixels: bool = True) -> LongTailedData:
    """Two images of each class, the same ones for training and test."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (2 * classes, channels, side, side), generator=generator, dtype=torch.uint8)
    part = (images if pixels else images.float() / 255, torch.arange(classes).repeat_interleave(2))
    names = tuple(str(index) for index in range(classes))
    known = {"pixel_mean": (0.4,) * channels, "pixel_deviation": (0.2,) * channels} if pixels else {}
    return LongTailedData("photographs", part, part, torch.full((classes,), 2), classes, "image", names, **known)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050"])
def test_features_have_the_width_that_the_network_says(name: str):
    network = TimmImages(3, name).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, network.out_features)


# transformers brings safetensors along, where there is one for this Python
@pytest.mark.parametrize("ending", ["pth", *(["safetensors"] if importlib.util.find_spec("safetensors") else [])])
def test_stored_weights_give_timms_features(ending: str, tmp_path: Path):
    whole = timm.create_model("test_vit", num_classes=7).eval()
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        importlib.import_module("safetensors.torch").save_file(whole.state_dict(), path)
    else:
        torch.save(whole.state_dict(), path)
    network = build_network("timm:test_vit", photographs(), weights=str(path)).eval()
    assert isinstance(network, Pixels)
    images = photographs().train[0]
    mean, deviation = (torch.tensor(whole.default_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    features = whole.forward_head(whole.forward_features((images / 255 - mean) / deviation), pre_logits=True)
    torch.testing.assert_close(network(images), features, rtol=1e-5, atol=1e-5)


def test_stored_weights_are_fitted_to_other_channels_and_sizes(tmp_path: Path):
    whole = timm.create_model("test_vit").eval()
    path = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), path)
    network = TimmImages(1, "test_vit", weights=str(path), img_size=64).eval()
    assert network.pixel_mean == ()  # timm has it of three channels: the data's own is taken
    places = network.network.patch_embed.num_patches
    assert places == (64 // 16) ** 2 != whole.patch_embed.num_patches
    summed = whole.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(network.network.patch_embed.proj.weight, summed)


def test_images_are_scaled_to_the_one_size_that_a_network_takes():
    fixed = TimmImages(3, "vit_tiny_patch16_224", img_size=48, depth=1).eval()
    images = torch.rand(2, 3, 32, 32)
    scaled = torch.nn.functional.interpolate(images, size=(48, 48), mode="bicubic", align_corners=False)
    assert torch.equal(fixed(images), fixed.network(scaled))
    assert TimmImages(3, "vit_tiny_patch16_224", depth=1).size == (224, 224)
    assert TimmImages(3, "test_resnet").size is None


def test_without_weights_the_datas_own_mean_counts(tmp_path: Path):
    network = build_network("timm:test_resnet", photographs())
    assert isinstance(network, Pixels)
    assert network.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    assert isinstance(build_network("timm:test_resnet", photographs(pixels=False)), TimmImages)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"name must be .*takes numbers for photographs, got 'timm:test_resnet'"):
        build_network("timm:test_resnet", photographs(pixels=False), weights=str(tmp_path / "weights.pth"))


def test_attention_is_not_fused():
    network = TimmImages(3, "test_vit")
    fused = [part.fused_attn for part in network.modules() if hasattr(part, "fused_attn")]
    assert fused
    assert not any(fused)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("resnet51", {}, r"name must be timm:NAME with a NAME of timm.list_models.* 'timm:resnet51' \(did you mean "),
    ("hf-hub:a/b", {}, "name must be timm:NAME .*got 'timm:hf-hub:a/b'"),
    ("test_resnet", {"weights": "nowhere.pth"}, "weights must be a file with a network's state, got 'nowhere.pth'"),
    ("test_resnet", {"weights": str(RECIPE)}, "weights must be the state of a test_resnet, got"),
    ("test_resnet", {"weights": str(RECIPE), "pretrained": True}, "pretrained must be False where weights are given"),
    ("test_resnet", {"pretrained": 1}, "pretrained must be True or False, got 1"),
    ("test_resnet", {"dept": 3}, "unexpected keyword argument 'dept'"),
    ("test_resnet", {"num_classes": 3}, "num_classes must be left out, .*got 3"),
    ("test_vit", {"img_size": "wide"}, "img_size must be an integer, got 'wide'"),
    ("test_vit", {"img_size": [32, 0]}, "img_size must be at least 1, got 0"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named(name: str, options: dict, message: str):
    config = TrainConfig(network=f"timm:{name}", network_options=options)
    with pytest.raises(ConfigError, match=message):
        build_module(config, photographs())


def test_weights_of_another_network_are_named(tmp_path: Path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights must be the state of a test_resnet, got"):
        TimmImages(3, "test_resnet", weights=str(tmp_path / "weights.pth"))


def narrow(recipe: str, name: str) -> TrainConfig:
    """A recipe's method, or one of its variants, with a small network of random weights."""
    config = config_of(read_settings(find_recipe(recipe)), name, 0)
    assert config.network_options.keys() == {"weights", "drop_path_rate"}
    return config.replace(network_options=NARROW)


@pytest.mark.parametrize("recipe", FINE_TUNED)
def test_settings_of_fine_tuning_are_the_published_ones(recipe: str):
    config = make_config(read_settings(find_recipe(recipe)))
    assert config.optimizer == {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.999]}}
    assert (config.lr, config.batch_size, config.layer_decay, config.weight_decay) == (1e-3, 256, 0.75, 0.05)
    assert (config.epochs, config.warmup_epochs, config.schedule) == (100, 5, "cosine")


@pytest.mark.parametrize("recipe", FINE_TUNED)
def test_rates_and_decay_of_fine_tuning(recipe: str):
    """Block l of 12 learns at 0.75^(13 - l) of the rate, what is before it at 0.75^13, and what has one axis keeps its
    length, as the token and the places do.
    """
    config, data = narrow(recipe, "bs"), photographs(side=224)
    module = build_module(config, data)
    found = {id(p): group for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert len(found) == len(list(module.network.parameters())) + 2
    for name, parameter in module.network.named_parameters():
        own = name.removeprefix("network.network.")
        block = int(own.split(".")[1]) if own.startswith("blocks.") else -1
        factor = 1.0 if own.startswith("norm") else 0.75 ** (12 - block)
        assert found[id(parameter)]["lr"] == pytest.approx(1e-3 * factor), own
        decays = parameter.ndim > 1 and own not in ("cls_token", "pos_embed")
        assert found[id(parameter)]["weight_decay"] == (0.05 if decays else 0), own
    assert (found[id(module.head.weight)]["lr"], found[id(module.head.weight)]["weight_decay"]) == (1e-3, 0.05)


# What a variant trains of the network, by the end of a name or its begin.
TRAINED = {
    "bs": lambda name: True,
    "bs-head": lambda name: False,
    "bs-last-blocks": lambda name: name.startswith(("norm.", "blocks.8.", "blocks.9.", "blocks.10.", "blocks.11.")),
    "bs-attention": lambda name: ".attn." in name,
}


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_of_fine_tuning_change_what_is_not_frozen(name: str):
    config, data = narrow("imagenet-lt-timm", name), photographs(side=224)
    torch.set_num_threads(1)
    module = build_module(config, data)
    module.train()
    optimizer = module.configure_optimizers()
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        loss = module.training_step((data.train[0][:4], data.train[1][:4]), step)["loss"]
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        assert loss.isfinite()
    for key, value in module.named_parameters():
        own = key.removeprefix("network.network.network.")
        trained = key.startswith("head.") or TRAINED[name](own)
        assert torch.equal(value, before[key]) != trained, own
    assert {"bs", *variants_of(read_settings(find_recipe("imagenet-lt-timm")))} == set(TRAINED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as CIFAR-10's, and the weights of a small transformer."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root / "cifar-10-batches-py", 10, 100)
    stored = timm.create_model("vit_small_patch16_224", depth=1, num_classes=3, **NARROW)
    torch.save(stored.state_dict(), root / "weights.pth")
    return root


def words(root: Path, *more: str) -> list[str]:
    options = {"weights": str(root / "weights.pth"), "img_size": 32, "depth": 1, **NARROW, "drop_path_rate": 0.5}
    network = f"network_options={json.dumps(options)}"
    small = [
        "data=cifar10-lt",
        "epochs=2",
        "epoch_steps=3",
        "batch_size=4",
        "threads=1",
        "warmup_epochs=0",
        f"data_options={{root: {root}}}",
    ]
    changes = [word for change in (*small, network, *more) for word in ("--set", change)]
    return ["train", "--config", str(RECIPE), "--quiet", *changes]


def test_the_recipe_learns_goes_on_with_the_same_bits_and_is_analysed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ARCHIVES, "cifar10-lt", ARCHIVES["cifar10-lt"]._replace(per_class=100))
    told = words(root, "checkpoint_steps=1")
    assert cli.main([*told, "--out", str(tmp_path / "whole")]) == 0
    cut(4, lambda: cli.main([*told, "--out", str(tmp_path / "cut")]))
    assert cli.main([*told, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "cut")]
    assert {name for name, value in states[0].items() if not torch.equal(value, states[1][name])} == set()
    assert 0 <= read_result(tmp_path / "whole")["accuracy"]["all"] <= 100
    _, data, module = load_run(tmp_path / "whole")
    assert module(data.train[0][:2]).isfinite().all()
    assert cli.main(["analyze", str(tmp_path / "whole"), "--out", str(tmp_path / "analysis")]) == 0
