"""A language model of transformers over words, whose training steps never hold the logits of all words.

    python examples/transformers_causal_lm.py

The text is the source of Python's own library. With fuse_causal_lm a step goes from the features of the tokens to the
loss; evaluation and generation are those of the library.
"""

import argparse
import asyncio
import collections
import inspect
import re
import subprocess
import tarfile
import typing
import unittest.mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lt_kernels.integrations.transformers import fuse_causal_lm

sources = [argparse, asyncio.tasks, collections, inspect, subprocess, tarfile, typing, unittest.mock]
words = re.findall(r"\w+|[^\w\s]", "".join(map(inspect.getsource, sources)))
vocabulary = {word: index for index, (word, _) in enumerate(collections.Counter(words).most_common())}
tokens = torch.tensor([vocabulary[word] for word in words])
length = 64
rows = tokens[: len(tokens) // length * length].view(-1, length)
train, held_out = rows[16:], rows[:16]
print(f"{len(tokens):,} tokens of {len(vocabulary):,} words")

torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, max_position_embeddings=length, bos_token_id=None,
                     eos_token_id=None)  # fmt: skip
model = fuse_causal_lm(LlamaForCausalLM(config))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

model.train()
for step, batch in enumerate(torch.randperm(len(train)).split(16)[:60]):
    optimizer.zero_grad()
    outputs = model(input_ids=train[batch], labels=train[batch])
    assert outputs.logits is None  # [16, 64, V] would be here
    outputs.loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}: loss {outputs.loss.item():.3f}")

model.eval()
with torch.no_grad():
    print(f"held out: loss {model(input_ids=held_out, labels=held_out).loss.item():.3f}")
prompt = torch.tensor([[vocabulary[word] for word in ("if", "not", "isinstance", "(")]])
written = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
print(" ".join(list(vocabulary)[index] for index in written[0]))
