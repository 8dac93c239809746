"""Adapters of PEFT: a head of this package is trained and saved beside them, with the tables of its loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import C, batch, counts, model

from lt_kernels import losses
from lt_kernels.heads import LinearHead

transformers = pytest.importorskip("transformers", reason="the extra [integrations] is not installed: transformers")
peft = pytest.importorskip("peft", reason="the extra [integrations] is not installed: peft")

from lt_kernels.integrations.transformers import use_loss  # noqa: E402

NAME = "BertForSequenceClassification"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated and will be removed in v6:FutureWarning"
)  # peft's calls


def adapted(made: Any) -> Any:
    return peft.get_peft_model(made, peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))


@pytest.mark.parametrize("first", [True, False])
def test_a_head_is_trained_and_saved_with_the_adapters(first: bool, tmp_path: Path):
    loss, base, inputs = losses.BalancedSoftmaxLoss(counts(NAME)), model(transformers, NAME), batch(NAME)
    base.classifier = LinearHead(16, C, loss)
    fresh = copy.deepcopy(base)
    made = adapted(use_loss(base, loss)) if first else use_loss(adapted(base), loss)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    before = made(**inputs).loss
    for _ in range(3):
        optimizer.zero_grad()
        made(**inputs).loss.backward()
        optimizer.step()
    made.eval()
    assert made(**inputs).loss < before
    assert torch.equal(
        made.base_model.model.bert.embeddings.word_embeddings.weight, fresh.bert.embeddings.word_embeddings.weight
    )
    made.save_pretrained(tmp_path)
    with torch.no_grad():
        fresh.classifier.loss.offset.zero_()  # what is read back is the table of the file
    back = use_loss(peft.PeftModel.from_pretrained(fresh, tmp_path), losses.BalancedSoftmaxLoss(counts(NAME))).eval()
    assert torch.equal(back(**inputs).logits, made(**inputs).logits)
    assert torch.equal(back(**inputs).loss, made(**inputs).loss)
    head = back.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(head.loss.offset, loss.offset)
    assert head.loss.offset.dtype == torch.float64
