"""Models of transformers that hold a head or a loss: `from_pretrained` builds them on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from every_loss import COUNTS, HEADS, PLAIN, TARGET, C, D, N, tables
from helpers import normal
from torch import Tensor, nn

from lt_kernels import heads, losses

transformers = pytest.importorskip("transformers", reason="the extra [dev] is not installed: transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SIZES = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
IMAGE = normal(N, 3, 4, 4, seed=1, dtype=torch.float32)


def config() -> Any:
    """A tiny vision transformer's."""
    return transformers.ViTConfig(**SIZES, image_size=4, patch_size=2, class_counts=COUNTS)


class Classifier(transformers.PreTrainedModel):
    """A vision transformer and a head of ours, which one is said by `kind`."""

    config_class = transformers.ViTConfig
    base_model_prefix = "vit"

    def __init__(self, config: Any, kind: str = "linear bs") -> None:
        super().__init__(config)
        self.vit = transformers.ViTModel(config, add_pooling_layer=False)
        self.head = HEADS[kind]()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, heads.LinearHead):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.vit(pixel_values).last_hidden_state[:, 0]
        return self.head(features.repeat(1, getattr(self.head, "experts", 1)), labels)


class WithLoss(transformers.PreTrainedModel):
    """A vision transformer with a classifier of torch's, and a loss of ours."""

    config_class = transformers.ViTConfig
    base_model_prefix = "vit"

    def __init__(self, config: Any, kind: str = "BalancedSoftmaxLoss") -> None:
        super().__init__(config)
        self.vit = transformers.ViTModel(config, add_pooling_layer=False)
        self.classifier, self.loss = nn.Linear(D, C), PLAIN[kind]()
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.classifier(self.vit(pixel_values).last_hidden_state[:, 0]), labels)


@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_head_comes_back(kind: str, tmp_path: Path) -> None:
    model = Classifier(config(), kind).eval()
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    model.save_pretrained(tmp_path)
    back = Classifier.from_pretrained(tmp_path, kind=kind).eval()
    for key, saved in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], saved), key
        assert back.state_dict()[key].dtype == saved.dtype, key
    assert torch.equal(back(IMAGE, TARGET), model(IMAGE, TARGET))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear lade", "cosine ldam", "gml"])
def test_a_head_read_in_half_precision_keeps_its_tables(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Classifier(config(), kind)
    model.save_pretrained(tmp_path)
    back = Classifier.from_pretrained(tmp_path, kind=kind, dtype=dtype)
    assert back.head.weight.dtype == dtype
    for key, table in tables(model.head).items():
        assert torch.equal(tables(back.head)[key], table), key


@pytest.mark.parametrize("kind", ["weight", "BalancedSoftmaxLoss", "LabelAwareSmoothingLoss", "LADELoss"])
def test_a_checkpoint_without_the_loss_leaves_its_tables(kind: str, tmp_path: Path) -> None:
    """Fine-tuning from somebody's backbone: what the checkpoint lacks is made anew, but a prior cannot be."""
    transformers.ViTModel(config(), add_pooling_layer=False).save_pretrained(tmp_path)
    back = WithLoss.from_pretrained(tmp_path, kind=kind)
    for key, table in tables(PLAIN[kind]()).items():
        assert torch.equal(tables(back.loss)[key], table), key
    assert back(IMAGE, TARGET).isfinite()
    back.save_pretrained(tmp_path / "again")
    again = WithLoss.from_pretrained(tmp_path / "again", kind=kind)
    assert torch.equal(again(IMAGE, TARGET), back(IMAGE, TARGET))


def test_a_checkpoint_without_the_head_leaves_its_tables(tmp_path: Path) -> None:
    transformers.ViTModel(config(), add_pooling_layer=False).save_pretrained(tmp_path)
    back = Classifier.from_pretrained(tmp_path)
    assert torch.equal(back.head.loss.offset, losses.BalancedSoftmaxLoss(COUNTS).offset)
    assert back.head.weight.abs().max() <= D**-0.5  # drawn by `reset_parameters`
    assert back(IMAGE, TARGET).isfinite()


def test_tables_of_a_checkpoint_come_before_those_of_the_settings(tmp_path: Path) -> None:
    model = WithLoss(config())
    model.loss.offset.copy_(torch.tensor([0.0, -1.0, -2.0, -3.0]))
    model.save_pretrained(tmp_path)
    back = WithLoss.from_pretrained(tmp_path)
    assert back.loss.offset.tolist() == [0, -1, -2, -3]


def test_a_table_that_the_model_sets_itself_stays(tmp_path: Path) -> None:
    class Own(WithLoss):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.loss.offset = torch.tensor([0.0, -1.0, -2.0, -3.0], dtype=torch.float64, device="cpu")
            self.post_init()

    assert Own(config()).loss.offset.tolist() == [0, -1, -2, -3]
    transformers.ViTModel(config(), add_pooling_layer=False).save_pretrained(tmp_path)
    assert Own.from_pretrained(tmp_path).loss.offset.tolist() == [0, -1, -2, -3]
