"""Language models without logits in training: loss and gradients are the library's, and all else is as before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from test_transformers_labels import ITEMS, by_hand, same
from tiny_models import CAUSAL, N, T, V, batch, counts, gradients, model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_kernels import losses
from lt_kernels.margins import CosFace
from lt_kernels.ops import memory_budget

transformers = pytest.importorskip("transformers", reason="the extra [integrations] is not installed: transformers")

from lt_kernels.integrations.transformers import compute_loss_func, fuse_causal_lm, use_loss  # noqa: E402

LLAMA = "LlamaForCausalLM"


def fused(name: str, *loss: losses.Loss) -> Any:
    return fuse_causal_lm(model(transformers, name), *loss)


@pytest.mark.parametrize("name", CAUSAL)
def test_loss_and_gradients_are_the_library_s(name: str):
    own, ours, inputs = model(transformers, name), fused(name), batch(name)
    for more in ({}, {"num_items_in_batch": ITEMS}, {"num_items_in_batch": 40}):
        same(gradients(ours, {**inputs, **more}), gradients(own, {**inputs, **more}))


def test_in_float64_the_loss_is_exact():
    """The library's loss is float32 in each case; its gradients carry that error."""
    own, ours, inputs = model(transformers, LLAMA).double(), fused(LLAMA).double(), batch(LLAMA)
    labels, offset = inputs["labels"], torch.zeros(V)
    value, found = gradients(ours, inputs)
    exact, wanted = gradients(own, inputs, lambda out: by_hand(LLAMA, out.logits, labels, offset))
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_half_precision_the_loss_is_float32(autocast: bool):
    own, ours, inputs = model(transformers, LLAMA), fused(LLAMA), batch(LLAMA)
    own, ours = (own, ours) if autocast else (own.bfloat16(), ours.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted, found = own(**inputs), ours(**inputs)
    assert found.loss.dtype == wanted.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-3, atol=0.0)
    found.loss.backward()
    wanted.loss.backward()
    for one, other in zip(ours.parameters(), own.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm()


def test_labels_that_are_shifted_already():
    own, ours, inputs = model(transformers, LLAMA), fused(LLAMA), batch(LLAMA)
    inputs["shift_labels"] = inputs["labels"].roll(2, 1)
    same(gradients(ours, inputs), gradients(own, inputs))
    assert ours(**inputs).loss != ours(**batch(LLAMA)).loss


@pytest.mark.parametrize("name", CAUSAL)
def test_another_loss_holds_in_training_and_evaluation(name: str):
    inputs, own, ours = batch(name), model(transformers, name), fused(name, losses.BalancedSoftmaxLoss(counts(name)))
    offset = torch.tensor(counts(name)).float().log()
    extra = (lambda out: out.aux_loss * own.router_aux_loss_coef) if "Mixtral" in name else (lambda out: 0.0)
    wanted = gradients(own, inputs, lambda out: by_hand(name, out.logits, inputs["labels"], offset, ITEMS) + extra(out))
    same(gradients(ours, {**inputs, "num_items_in_batch": ITEMS}), wanted)
    torch.testing.assert_close(ours.eval()(**inputs, num_items_in_batch=ITEMS).loss, wanted[0])


@pytest.mark.parametrize("budget", [2**28, 4 * V * 16])
@pytest.mark.parametrize("loss", ["weight", "batch", "z-loss", "smoothed"])
def test_capped_logits_by_groups_of_tokens(loss: str, budget: int):
    """A mean that divides by weights, a prior of the whole batch, a z-loss, and smoothing, in one group and in many."""
    made: Any = {
        "weight": losses.Loss(weight=torch.linspace(0.5, 2.0, V)),
        "batch": losses.ARBLoss(counts="batch"),
        "z-loss": losses.FocalLoss(1.5, z_loss=0.1),
        "smoothed": losses.CrossEntropyLoss(label_smoothing=0.2),
    }[loss]
    ours, inputs = fused("Gemma2ForCausalLM", made), batch("Gemma2ForCausalLM")
    with memory_budget(budget):
        found = gradients(ours, inputs)
    same(found, gradients(ours.eval(), inputs))
    plain = model(transformers, "Gemma2ForCausalLM", final_logit_softcapping=None)
    assert abs(found[0] - gradients(fuse_causal_lm(plain, made), inputs)[0]) > 1e-3


class Held(losses.BalancedSoftmaxLoss):
    """A loss to which nobody may write once it is made."""

    made = False

    def __setattr__(self, name: str, value: Any) -> None:
        assert not self.made, name
        super().__setattr__(name, value)


@pytest.mark.parametrize("name", [LLAMA, "Gemma2ForCausalLM"])
def test_the_loss_stays_as_it_is(name: str):
    """So that several threads may use it at once, in training and in evaluation."""
    loss, inputs = Held(counts(name)), {**batch(name), "num_items_in_batch": ITEMS}
    loss.made = True
    wanted = gradients(fused(name, losses.BalancedSoftmaxLoss(counts(name))), inputs)
    ours = fused(name, loss)
    same(gradients(ours, inputs), wanted)
    torch.testing.assert_close(ours.eval()(**inputs).loss, wanted[0])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found = max([self.found, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


@pytest.mark.parametrize("name", [LLAMA, "Gemma2ForCausalLM"])
def test_no_tensor_is_as_large_as_the_logits(name: str):
    with memory_budget(N * V * 4), Largest() as ours:
        gradients(fused(name), batch(name))
    with Largest() as own:
        gradients(model(transformers, name), batch(name))
    assert own.found >= N * T * V > 2 * ours.found


@pytest.mark.parametrize("name", [LLAMA, "GPT2LMHeadModel"])
def test_evaluation_prediction_and_generation_are_as_before(name: str):
    own, ours, inputs = model(transformers, name), fused(name), batch(name)
    labels = inputs.pop("labels")
    assert torch.equal(ours(**inputs).logits, own(**inputs).logits)  # training mode, without labels
    own, ours = own.eval(), ours.eval()
    assert torch.equal(ours(**inputs, labels=labels).logits, own(**inputs, labels=labels).logits)
    assert torch.equal(ours(**inputs, labels=labels).loss, own(**inputs, labels=labels).loss)
    words = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones(N, T), "pad_token_id": 0}
    assert torch.equal(ours.generate(**inputs, **words), own.generate(**inputs, **words))


def test_outputs_in_training_have_no_logits():
    inputs, ours = batch(LLAMA), fused(LLAMA)
    found = ours(**inputs, output_hidden_states=True)
    assert "logits" not in found
    assert found.logits is None
    assert len(found.hidden_states) == 2
    assert torch.equal(ours(**inputs, return_dict=False)[0], found.loss)
    assert torch.equal(ours(inputs["input_ids"], labels=inputs["labels"]).loss, found.loss)


def test_an_error_in_a_step_leaves_the_model_whole():
    inputs, ours = batch(LLAMA), fused(LLAMA)
    with pytest.raises(IndexError):
        ours(**{**inputs, "labels": inputs["labels"] + V})
    same(gradients(ours, inputs), gradients(model(transformers, LLAMA), inputs))
    assert "_loss_function" not in vars(ours)


def test_copies_and_files(tmp_path: Any):
    inputs, ours = batch(LLAMA), fused(LLAMA)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert "logits" not in other(**inputs)
        assert torch.equal(other(**inputs).loss, ours(**inputs).loss)
    assert ours.state_dict().keys() == model(transformers, LLAMA).state_dict().keys()
    ours.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    same(gradients(fuse_causal_lm(back), inputs), gradients(ours, inputs))
    assert type(back).__name__ == type(ours).__name__ == LLAMA


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")  # peft's calls
def test_with_adapters_and_checkpoints_of_activations():
    peft = pytest.importorskip("peft", reason="the extra [integrations] is not installed: peft")
    found = []
    for made in (model(transformers, LLAMA), fused(LLAMA)):
        made.activation_checkpointing_enable()
        torch.manual_seed(3)
        adapted = peft.get_peft_model(made, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        found.append(gradients(adapted, batch(LLAMA)))
    same(*found)
    assert found[0][1]
    afterwards = peft.get_peft_model(model(transformers, LLAMA), peft.LoraConfig(target_modules=["q_proj"]))
    assert "logits" not in fuse_causal_lm(afterwards)(**batch(LLAMA))


class ClampedForCausalLM(transformers.LlamaForCausalLM):
    """A model that does more to its logits than to scale them."""

    def forward(self, input_ids: Any, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state).clamp(-50.0, 50.0)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


class ZLossForCausalLM(transformers.LlamaForCausalLM):
    """A model that has a second loss of its logits, as BambaForCausalLM does."""

    def forward(self, input_ids: Any, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        loss = loss + 1e-4 * logits.logsumexp(-1).pow(2).mean()
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


def refused(name: str) -> Any:
    plain = model(transformers, LLAMA)
    if name in ("clamped", "second"):
        own = ClampedForCausalLM if name == "clamped" else ZLossForCausalLM
        return fuse_causal_lm(own(plain.config))
    if name == "head":
        plain.lm_head = torch.nn.Sequential(plain.lm_head)
    return {
        "bert": lambda: fuse_causal_lm(model(transformers, "BertForSequenceClassification")),
        "masked": lambda: fuse_causal_lm(model(transformers, "ModernBertForMaskedLM")),
        "head": lambda: fuse_causal_lm(plain),
        "twice": lambda: fuse_causal_lm(fuse_causal_lm(plain)),
        "other": lambda: fuse_causal_lm(use_loss(plain, losses.CrossEntropyLoss())),
        "after": lambda: use_loss(fuse_causal_lm(plain), losses.CrossEntropyLoss()),
        "trainer": lambda: compute_loss_func(fuse_causal_lm(plain), losses.CrossEntropyLoss()),
        "lade": lambda: fuse_causal_lm(plain, losses.LADELoss(counts(LLAMA))),
        "cosine": lambda: fuse_causal_lm(plain, losses.CosFaceLoss()),
        "margin": lambda: fused("Gemma2ForCausalLM", losses.Loss(margin=CosFace(0.1))),
        "labels": lambda: fuse_causal_lm(plain, losses.CrossEntropyLoss(ignore_index=0)),
    }[name]()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", "a causal language model that calls its loss_function, got a BertForSequence"),
        ("masked", "a causal language model that calls its loss_function, got a ModernBertForMaskedLM"),
        ("head", "nn.Linear as lm_head, got Sequential"),
        ("clamped", "a ClampedForCausalLM does more"),
        ("second", "and nothing else from them; a ZLossForCausalLM does more"),
        ("after", "must not be fused, got a fused LlamaForCausalLM"),
        ("trainer", "must not be fused, got a fused LlamaForCausalLM"),
        ("twice", "got a LlamaForCausalLM with another: give that as loss"),
        ("other", "got a LlamaForCausalLM with another: give that as loss"),
        ("lade", "loss must not need all logits, got LADELoss"),
        ("cosine", "loss must take what the model computes, logits"),
        ("margin", "loss must have no margin, since the model caps its logits"),
        ("labels", "ignore_index=-100"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        refused(name)


def test_an_adapter_of_the_head_is_refused_at_the_step():
    ours = fused(LLAMA)
    ours.lm_head = torch.nn.Sequential(ours.lm_head)
    with pytest.raises(ValueError, match=r"nn.Linear as lm_head, got Sequential"):
        ours(**batch(LLAMA))


@pytest.mark.parametrize("loss", [(), (losses.CrossEntropyLoss(),)])
def test_another_function_set_after_fusing_is_refused_at_the_step(loss: tuple[losses.Loss, ...]):
    ours = copy.deepcopy(fused(LLAMA, *loss))
    ours(**batch(LLAMA))
    ours.loss_function = lambda *others, **named: torch.tensor(1.0)
    with pytest.raises(ValueError, match="keep the loss that it was fused with"):
        ours(**batch(LLAMA))


class ReadsHeadForCausalLM(transformers.LlamaForCausalLM):
    """A model that reads its head's settings, and takes logits to float32, as Mamba and Apertus do."""

    def forward(self, input_ids: Any, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state.to(self.lm_head.weight.dtype)).float()
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.lm_head.out_features)
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_that_reads_its_head_s_settings(dtype: torch.dtype):
    own = ReadsHeadForCausalLM(model(transformers, LLAMA).config).to(dtype).train()
    inputs = {name: batch(LLAMA)[name] for name in ("input_ids", "labels")}
    found, wanted = fuse_causal_lm(copy.deepcopy(own))(**inputs).loss, own(**inputs).loss
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=0.0)


@pytest.mark.parametrize("change", [fuse_causal_lm, lambda made: use_loss(made, losses.CrossEntropyLoss())])
def test_another_label_to_ignore_is_refused(change: Any):
    with pytest.raises(ValueError, match="ignore_index must be -100, that of the loss, got 3"):
        change(model(transformers, LLAMA))(**batch(LLAMA), ignore_index=3)
