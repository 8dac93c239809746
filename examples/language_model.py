"""A small causal language model of the words in Python's standard library, without logits in memory.

    python examples/language_model.py

docs/guides/language_models.md says what each option of the loss is for.
"""

import re
import string
from collections import Counter
from pathlib import Path

import torch

from lt_kernels.functional import Accuracy, linear_cross_entropy

LENGTH, WIDTH, BATCH, STEPS = 32, 64, 16, 120
folder = Path(string.__file__).parent
text = " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:40])
words = re.findall(r"\w+|[^\w\s]", text)
names = ["?", *(word for word, count in Counter(words).most_common(2000) if count > 1)]
number = {name: place for place, name in enumerate(names)}
tokens = torch.tensor([number.get(word, 0) for word in words])


class Model(torch.nn.Module):
    """Embeddings, a recurrent layer, and class weights that are the embeddings again: hidden states [B, T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(names), WIDTH)
        self.layer = torch.nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embedding(given))[0]


torch.manual_seed(0)
model, accuracy = Model(), Accuracy()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(STEPS):
    start = torch.randint(len(tokens) - LENGTH, (BATCH, 1))
    batch = tokens[start + torch.arange(LENGTH)]  # [B, T]
    loss = linear_cross_entropy(
        model(batch),
        model.embedding.weight,
        batch,
        shift=1,  # the state at t predicts the word at t + 1
        sample_weight=(batch != 0).float(),  # a word without a place of its own is not to be learned
        softcap=30.0,
        z_loss=1e-4,
        accuracy=accuracy,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 40 == 39:
        print(f"step {step + 1}: loss {loss.item():.3f}, right {accuracy.value():.3f}")
        accuracy.reset()
