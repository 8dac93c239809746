"""Losses in models of transformers: the library's own value for cross-entropy, and ours where its class ignores one."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from tiny_models import BY_HAND, CAUSAL, CONFIGS, C, batch, counts, gradients, model
from torch import Tensor

from lt_kernels import heads, losses

transformers = pytest.importorskip("transformers", reason="the extra [integrations] is not installed: transformers")

from lt_kernels.integrations.transformers import compute_loss_func, use_loss  # noqa: E402

CE = losses.CrossEntropyLoss
ITEMS = torch.tensor(40)


def same(found: Any, wanted: Any) -> None:
    """Loss and gradients to 1e-6 of the largest; those of masked keys' biases are 0 but for rounding."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=1e-6)
    largest = max(grad.abs().max().item() for grad in wanted[1].values())
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-6 * largest)


def by_hand(name: str, logits: Tensor, labels: Tensor, offset: Tensor, items: Any = None) -> Tensor:
    """Balanced softmax of a model's logits, in plain torch."""
    if name in CAUSAL:
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows, labels = (logits + offset).flatten(0, -2), labels.flatten()
    if items is None:
        return F.cross_entropy(rows, labels)
    return F.cross_entropy(rows, labels, reduction="sum") / items


@pytest.mark.parametrize("name", CONFIGS)
def test_cross_entropy_is_the_library_s_own(name: str):
    own, ours = model(transformers, name), use_loss(model(transformers, name), CE())
    same(gradients(ours, batch(name)), gradients(own, batch(name)))


@pytest.mark.parametrize("name", CONFIGS)
def test_another_loss_is_the_one_that_is_computed(name: str):
    """With a prior of the classes the value differs from cross-entropy, which the library would silently compute."""
    inputs, ours = batch(name), use_loss(model(transformers, name), losses.BalancedSoftmaxLoss(counts(name)))
    own, offset = model(transformers, name), torch.tensor(counts(name)).float().log()
    extra = (lambda out: out.aux_loss * own.router_aux_loss_coef) if "Mixtral" in name else (lambda out: 0.0)
    for more in ({}, {"num_items_in_batch": ITEMS}):
        wanted = gradients(
            own,
            inputs,
            lambda out, more=more: by_hand(name, out.logits, inputs["labels"], offset, *more.values()) + extra(out),
        )
        same(gradients(ours, {**inputs, **more}), wanted)
        assert abs(wanted[0] - own(**inputs).loss) > 1e-2


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "ViTForImageClassification", "GPT2LMHeadModel"])
def test_a_tuple_has_the_loss_first(name: str):
    inputs, ours = batch(name), use_loss(model(transformers, name), losses.BalancedSoftmaxLoss(counts(name)))
    found = ours(**inputs, return_dict=False)
    assert torch.equal(found[0], ours(**inputs).loss)
    assert torch.equal(found[1], ours(**inputs).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_set_as_the_loss_is_bypassed_by_the_library(name: str):
    """If this fails, the library has changed, and docs/guides/transformers.md is wrong."""
    inputs, set_there, own = batch(name), model(transformers, name), model(transformers, name)
    set_there.loss_function = losses.BalancedSoftmaxLoss(counts(name))
    assert torch.equal(set_there(**inputs).loss, own(**inputs).loss)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_function_set_as_the_loss_is_bypassed_by_classes_that_compute_their_own(name: str):
    inputs, set_there, own = batch(name), model(transformers, name), model(transformers, name)
    set_there.loss_function = lambda *args, **kwargs: torch.zeros(())
    assert torch.equal(set_there(**inputs).loss, own(**inputs).loss)
    assert torch.equal(set_there(**inputs, num_items_in_batch=ITEMS).loss, own(**inputs).loss)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_trainer_s_protocol(name: str):
    own, ours, inputs = model(transformers, name), model(transformers, name), batch(name)
    offset, loss = torch.tensor(counts(name)).float().log(), losses.BalancedSoftmaxLoss(counts(name))
    function, labels = compute_loss_func(ours, loss), inputs.pop("labels")
    for items in (None, ITEMS, 40):
        wanted = gradients(own, inputs, lambda out, items=items: by_hand(name, out.logits, labels, offset, items))
        same(gradients(ours, inputs, lambda out, items=items: function(out, labels, num_items_in_batch=items)), wanted)


def test_weighted_rows_are_summed_and_a_term_of_the_batch_counts_by_its_labels():
    name = "ViTForImageClassification"
    inputs, weight = batch(name), torch.tensor([1.0, 2.0, 3.0, 4.0])
    ours = use_loss(model(transformers, name), losses.Loss(weight=weight))
    wanted = F.cross_entropy(ours(**inputs).logits, inputs["labels"], weight, reduction="sum") / 40
    torch.testing.assert_close(ours(**inputs, num_items_in_batch=ITEMS).loss, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        ours(**inputs).loss, F.cross_entropy(ours(**inputs).logits, inputs["labels"], weight), rtol=1e-6, atol=1e-6
    )
    use_loss(ours, losses.LADELoss(counts(name)))
    torch.testing.assert_close(ours(**inputs, num_items_in_batch=12).loss, ours(**inputs).loss / 2)


def test_a_schedule_reaches_the_loss_of_the_model():
    name = "BertForSequenceClassification"
    loss = CE()
    ours, inputs = use_loss(model(transformers, name), loss), batch(name)
    loss.set_weight(torch.tensor([1.0, 5.0, 5.0, 5.0]))
    wanted = F.cross_entropy(ours(**inputs).logits, inputs["labels"], torch.tensor([1.0, 5.0, 5.0, 5.0]))
    torch.testing.assert_close(ours(**inputs).loss, wanted)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "ViTForImageClassification", "GPT2LMHeadModel"])
def test_the_model_is_what_it_was_but_for_its_loss(name: str, tmp_path: Any):
    before, inputs = model(transformers, name), batch(name)
    ours = use_loss(model(transformers, name), losses.BalancedSoftmaxLoss(counts(name)))
    assert type(ours).__name__ == name
    assert isinstance(ours, getattr(transformers, name))
    assert ours.state_dict().keys() == before.state_dict().keys()
    ours.save_pretrained(tmp_path)
    back = getattr(transformers, name).from_pretrained(tmp_path)
    assert back.config.architectures == [name]
    assert torch.equal(
        use_loss(back, losses.BalancedSoftmaxLoss(counts(name)))(**inputs).loss, ours.eval()(**inputs).loss
    )
    labels = inputs.pop("labels")
    assert torch.equal(ours(**inputs).logits, before.eval()(**inputs).logits)
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(stored, weights_only=False)):
        assert torch.equal(other(**inputs, labels=labels).loss, ours(**inputs, labels=labels).loss)


def test_labels_by_their_place():
    ours = use_loss(model(transformers, "BertForSequenceClassification"), losses.BalancedSoftmaxLoss(counts("")))
    inputs = batch("BertForSequenceClassification")
    found = ours(inputs["input_ids"], None, None, None, None, inputs["labels"])
    assert torch.equal(found.loss, ours(**inputs).loss)


def test_cosines_of_a_head():
    """A CosineHead as a model's classifier gives cosines, to which a margin loss applies its own scale."""
    name = "BertForSequenceClassification"
    loss, made, inputs = losses.CosFaceLoss(), model(transformers, name), batch(name)
    made.classifier = heads.CosineHead(16, C, loss)
    features = []
    made.classifier.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    found = use_loss(made, loss)(**inputs).loss
    torch.testing.assert_close(found, made.classifier(features[0], inputs["labels"]))
    with pytest.raises(ValueError, match="loss must take what the model computes, cosines"):
        use_loss(made, CE())
    with pytest.raises(ValueError, match="loss must take what the model computes, logits"):
        compute_loss_func(model(transformers, name), loss)


def refused(name: str) -> list[tuple[Any, str]]:
    vision = "ViTForImageClassification"
    return {
        "no model": (lambda: use_loss(torch.nn.Linear(2, 2), CE()), "model must be a PreTrainedModel"),
        "bart": (lambda: use_loss(bart("BartForCausalLM"), CE()), "BartForCausalLM computes another loss itself"),
        "seq2seq": (lambda: use_loss(bart("BartForConditionalGeneration"), CE()), "computes another loss itself"),
        "masked": (lambda: use_loss(masked_tokens(), CE()), "its loss also depends on attention_mask"),
        "multi": (
            lambda: use_loss(model(transformers, vision, problem_type="multi_label_classification"), CE()),
            "multi_label",
        ),
        "regression": (lambda: use_loss(model(transformers, vision, num_labels=1), CE()), "got 1 labels"),
        "prepared": (lambda: use_loss(prepared(), CE()), "the forward of its class"),
        "function": (lambda: use_loss(model(transformers, vision), F.cross_entropy), "loss must be one of"),
        "features": (
            lambda: use_loss(model(transformers, vision), losses.EstimatedOffsetLoss(C, 16)),
            "needs the features",
        ),
        "none": (lambda: use_loss(model(transformers, vision), CE(reduction="none")), "reduction='mean', got 'none'"),
        "ignored": (lambda: use_loss(model(transformers, vision), CE(ignore_index=0)), "ignore_index=-100"),
        "capped": (lambda: use_loss(model(transformers, vision), CE(softcap=30.0)), "softcap=None.*got 30.0"),
        "float": (lambda: float_labels(), "labels must hold class indices, got torch.float32"),
        "tuple": (lambda: compute_loss_func(model(transformers, vision), CE())((), None), "outputs must have names"),
        "no labels": (
            lambda: compute_loss_func(model(transformers, vision), CE())({"logits": None}, None),
            "labels must be",
        ),
    }[name]


def bart(name: str) -> Any:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    sizes |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "vocab_size": 9}
    return getattr(transformers, name)(transformers.BartConfig(**sizes))


def masked_tokens() -> Any:
    return transformers.YosoForTokenClassification(transformers.YosoConfig(**tiny_models.BERT))


def prepared() -> Any:
    made = model(transformers, "ViTForImageClassification")
    made.forward = made.forward
    return made


def float_labels() -> None:
    inputs = batch("ViTForImageClassification")
    use_loss(model(transformers, "ViTForImageClassification"), CE())(**{**inputs, "labels": torch.rand(6, C)})


KINDS = (
    "no model,bart,seq2seq,masked,multi,regression,prepared,function,features,none,ignored,capped,float,tuple,no labels"
)


@pytest.mark.parametrize("name", KINDS.split(","))
def test_what_would_be_wrong_is_refused(name: str):
    call, message = refused(name)
    with pytest.raises((TypeError, ValueError), match=message):
        call()
