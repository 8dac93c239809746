"""The Trainer with losses of this package: accumulated batches make the step of one, by each of its protocols."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batch, counts, model
from torch import Tensor

from lt_kernels import losses

transformers = pytest.importorskip("transformers", reason="the extra [integrations] is not installed: transformers")
pytest.importorskip("accelerate", reason="the extra [integrations] is not installed: accelerate")

from lt_kernels.integrations.transformers import compute_loss_func, fuse_causal_lm, use_loss  # noqa: E402

NAMES = ["BertForSequenceClassification", "ConvNextForImageClassification", "BertForTokenClassification"]
NAMES += ["LlamaForCausalLM"]


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """Leave what is imported out of the collections of garbage that each training ends with."""
    gc.freeze()
    yield
    gc.unfreeze()


def steps(made: Any, name: str, tmp_path: Path, at_once: int, **more: Any) -> tuple[dict[str, Tensor], float]:
    """The weights after two steps of plain SGD over the six samples, `at_once` of them in a batch, and the loss."""
    rows = batch(name)
    data = [{key: rows[key][i] for key in rows} for i in range(len(rows["labels"]))]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=at_once, gradient_accumulation_steps=6 // at_once,
        max_steps=2, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential", logging_steps=1,
    )  # fmt: skip
    trainer = transformers.Trainer(made, args, train_dataset=data, **more)
    trainer.train()
    return {name: value.clone() for name, value in made.state_dict().items()}, trainer.state.log_history[0]["loss"]


def close(found: Any, wanted: Any) -> None:
    assert found[1] == pytest.approx(wanted[1], rel=1e-4)  # the Trainer logs rounded numbers
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protocol", ["model", "trainer"])
@pytest.mark.parametrize("name", NAMES)
def test_accumulated_batches_make_the_step_of_one(name: str, protocol: str, tmp_path: Path):
    """Labels that are ignored are unevenly spread over the batches, so that a mean of means would be another step."""
    found = []
    for at_once in (6, 1, 2):
        made, loss = model(transformers, name), losses.BalancedSoftmaxLoss(counts(name))
        if protocol == "model":
            found.append(steps(use_loss(made, loss), name, tmp_path, at_once))
        else:
            found.append(steps(made, name, tmp_path, at_once, compute_loss_func=compute_loss_func(made, loss)))
    close(found[1], found[0])
    close(found[2], found[0])


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_a_fused_model_takes_the_library_s_steps(name: str, tmp_path: Path):
    own = steps(model(transformers, name), name, tmp_path, 2)
    close(steps(fuse_causal_lm(model(transformers, name)), name, tmp_path, 2), own)


def test_both_protocols_take_the_same_step(tmp_path: Path):
    name, loss = "LlamaForCausalLM", losses.BalancedSoftmaxLoss(counts("LlamaForCausalLM"))
    made = model(transformers, name)
    by_trainer = steps(made, name, tmp_path, 2, compute_loss_func=compute_loss_func(made, loss))
    close(steps(use_loss(model(transformers, name), loss), name, tmp_path, 2), by_trainer)
    close(steps(fuse_causal_lm(model(transformers, name), loss), name, tmp_path, 2), by_trainer)


@pytest.mark.parametrize("name", ["BertForSequenceClassification"])
def test_the_library_s_own_loss_grows_with_accumulation(name: str, tmp_path: Path):
    """Where a class takes the number of labels and leaves it aside; use_loss divides by it.

    If this fails, the library has changed, and docs/guides/transformers.md is wrong.
    """
    once, often = (steps(model(transformers, name), name, tmp_path, at_once) for at_once in (6, 1))
    assert often[1] > 3 * once[1]
    close(steps(use_loss(model(transformers, name), losses.CrossEntropyLoss()), name, tmp_path, 1), once)


def test_evaluation_has_the_loss_of_the_model(tmp_path: Path):
    name = "BertForSequenceClassification"
    made, rows = use_loss(model(transformers, name), losses.BalancedSoftmaxLoss(counts(name))), batch(name)
    data = [{key: rows[key][i] for key in rows} for i in range(6)]
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    found = transformers.Trainer(made, args, eval_dataset=data).evaluate()["eval_loss"]
    assert found == pytest.approx(made.eval()(**rows).loss.item(), rel=1e-5)
