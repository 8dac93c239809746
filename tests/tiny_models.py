"""Small models of transformers, from configurations, with a batch each: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

C, V, N, T = 4, 50, 6, 7
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": V}
BERT |= {"max_position_embeddings": 16}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "eos_token_id": 2}
VIT = {**BERT, "image_size": 8, "patch_size": 4}
STAGES = {"hidden_sizes": [4, 8], "depths": [1, 1]}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", BERT),
    "RobertaForSequenceClassification": ("RobertaConfig", {**BERT, "pad_token_id": 0}),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": V, "max_position_embeddings": 16},
    ),
    "LlamaForSequenceClassification": ("LlamaConfig", LLAMA),
    "BertForTokenClassification": ("BertConfig", BERT),
    "Qwen2ForTokenClassification": ("Qwen2Config", LLAMA),
    "BertForMaskedLM": ("BertConfig", BERT),
    "ModernBertForMaskedLM": ("ModernBertConfig", LLAMA),
    "ViTForImageClassification": ("ViTConfig", VIT),
    "ConvNextForImageClassification": ("ConvNextConfig", {**STAGES, "num_stages": 2, "patch_size": 2}),
    "ResNetForImageClassification": ("ResNetConfig", {**STAGES, "embedding_size": 4}),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA),
    "Qwen2ForCausalLM": ("Qwen2Config", LLAMA),
    "MixtralForCausalLM": ("MixtralConfig", {**LLAMA, "output_router_logits": True, "num_local_experts": 2}),
    "CohereForCausalLM": ("CohereConfig", LLAMA),
    "PhiForCausalLM": ("PhiConfig", LLAMA),
    "Gemma2ForCausalLM": ("Gemma2Config", {**LLAMA, "final_logit_softcapping": 2.0}),
}
CAUSAL = [name for name in CONFIGS if name.endswith(("ForCausalLM", "LMHeadModel"))]
# What calls nn.CrossEntropyLoss by itself, whatever is set as its loss_function.
BY_HAND = [name for name in CONFIGS if name.startswith(("Bert", "Roberta", "DistilBert"))]


def model(library: Any, name: str, **more: Any) -> Any:
    """The model with random weights, without dropout, large enough logits to tell losses apart; in training mode."""
    config, sizes = CONFIGS[name]
    torch.manual_seed(0)
    made = getattr(library, name)(getattr(library, config)(**{**sizes, "num_labels": C, **more}))
    for part in made.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    last = [part for part in made.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(20.0)
    return made.train()


def batch(name: str) -> dict[str, Tensor]:
    """Inputs and labels, some of which are ignored where there is one for each token."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(3, V, (N, T), generator=draw)
    if "Image" in name:
        return {"pixel_values": torch.randn(N, 3, 8, 8, generator=draw), "labels": torch.tensor([0, 0, 1, 0, 2, 3])}
    if "Sequence" in name:
        return {"input_ids": words, "labels": torch.tensor([0, 0, 1, 0, 2, 3])}
    labels = torch.randint(C if "Token" in name else V, (N, T), generator=draw)
    labels[0, 2:4] = labels[3, :5] = -100
    return {"input_ids": words, "labels": labels}


def counts(name: str) -> list[int]:
    """How often each class was seen, far from even."""
    return [(c + 1) ** 3 for c in range(V if name in CAUSAL or "Masked" in name else C)]


def gradients(made: nn.Module, inputs: dict[str, Any], loss: Callable[[Any], Tensor] = lambda out: out.loss) -> Any:
    """The value of a loss, and the gradient of each parameter that has one."""
    made.zero_grad()
    value = loss(made(**inputs))
    value.backward()
    return value.detach(), {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
