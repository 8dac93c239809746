"""What a classifier predicts, in one process or in several that share the rows out among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core.checks import is_dtensor
from lt_kernels.data.lazy import LARGEST_PART
from lt_kernels.distributed import gather_batch
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.ranks.group import ALONE, Ranks


@torch.inference_mode()
def predict(module: Classifier, inputs: Tensor, batch_size: int = 1024, ranks: Ranks = ALONE) -> Tensor:
    """The class with the largest logit (or cosine) of each row or pixel, int64 [N] or [N, H, W], on the CPU; each of
    `ranks` predicts its share of the rows, and all of them get all.
    """
    own = torch.cat([found for _, found in predictions(module, inputs, batch_size, ranks)])
    return ranks.joined(own, len(inputs))


@torch.inference_mode()
def predictions(
    module: Classifier, inputs: Tensor, batch_size: int = 1024, ranks: Ranks = ALONE
) -> Iterator[tuple[slice, Tensor]]:
    """`predict` of this rank's rows, `batch_size` inputs at a time: their places, and what is predicted of them."""
    was_training = module.training
    module.eval()
    for places, part in _parts(inputs, batch_size, ranks):
        features = module.features(part.to(module.device))
        mine = slice(0, len(features))
        if ranks.world > 1 and is_dtensor(module.active_head.weight):
            sizes = ranks.each(len(features))
            none = torch.zeros(len(features), dtype=torch.int64, device=features.device)
            features = gather_batch(features, none)[0]
            mine = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
        yield places, largest(module.classify(features))[mine].cpu()
    module.train(was_training)


def _parts(inputs: Any, batch_size: int, ranks: Ranks) -> Iterator[tuple[slice, Tensor]]:
    """This rank's rows and their places, at most `batch_size` at a time; as many parts on every rank, some of them
    perhaps empty.
    """
    if ranks.world == 1:
        start = 0
        for part in inputs.split(batch_size):
            yield slice(start, start + len(part)), part
            start += len(part)
        return
    most = ranks.share(len(inputs))[0]
    rows = torch.arange(len(inputs)).tensor_split(ranks.world)[ranks.rank]
    parts = rows.tensor_split(max(1, -(-most // min(batch_size, LARGEST_PART))))
    for part, following in zip(parts, [*parts[1:], rows[:0]], strict=True):
        found = inputs.index_select(0, part)
        if hasattr(inputs, "prefetch"):
            inputs.prefetch(following)
        start = int(part[0]) if len(part) else 0
        yield slice(start, start + len(part)), found


def largest(logits: Any) -> Tensor:
    """The place of the largest of each row's logits [..., C], int64 [...]; of those that are sharded by class too."""
    if not is_dtensor(logits):
        return logits.argmax(dim=-1)
    own, mesh = logits.to_local(), logits.device_mesh
    first = min(mesh.get_local_rank() * -(-logits.shape[-1] // mesh.size()), logits.shape[-1])  # chunks of DTensor
    low = torch.full((*own.shape[:-1], 1), -math.inf, dtype=own.dtype, device=own.device)
    best = torch.cat([own, low], -1).max(-1)  # a rank may have no class
    pairs = torch.stack([best.values.double(), (best.indices + first).double()])
    all_of = [torch.empty_like(pairs) for _ in range(mesh.size())]
    dist.all_gather(all_of, pairs, group=mesh.get_group())
    values, places = torch.stack(all_of, 1)
    return places.gather(0, values.argmax(0, keepdim=True))[0].long()
