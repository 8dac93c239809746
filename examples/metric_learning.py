"""An ArcFace loss of pytorch-metric-learning as a head of this package, with a miner, on digits with a long tail.

    python examples/metric_learning.py

`from_pml` copies the loss's class weights: both compute the same. The head takes any other loss of the package too, and
does not hold all logits.
"""

import torch
from pytorch_metric_learning import losses, miners

from lt_kernels.data import load
from lt_kernels.heads import CosineHead
from lt_kernels.integrations.metric_learning import from_pml, miner_weights
from lt_kernels.losses import DBMLoss
from lt_kernels.metrics import per_class_accuracy

data = load("digits-lt", imbalance=50)
(images, labels), (test, target) = data.train, data.test
miner = miners.BatchHardMiner()


def trained(head: CosineHead) -> float:
    """The mean accuracy of the classes, in percent, after 20 epochs."""
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(20):
        for batch in torch.randperm(len(labels)).split(64):
            embeddings = trunk(images[batch])
            weights = miner_weights(miner(embeddings, labels[batch]), labels[batch])
            optimizer.zero_grad()
            (weights * head(embeddings, labels[batch])).mean().backward()
            optimizer.step()
    with torch.no_grad():
        return 100 * per_class_accuracy(head(trunk(test)).argmax(1), target, data.num_classes).mean().item()


theirs = losses.ArcFaceLoss(data.num_classes, 32, margin=11.5, scale=16)  # degrees
head = from_pml(theirs)
embeddings = torch.randn(8, 32)
print(f"theirs {theirs(embeddings, labels[:8]):.6f}, ours {head(embeddings, labels[:8]):.6f}")

print(f"ArcFace: {trained(from_pml(theirs, reduction='none')):.1f}")
sub = CosineHead(32, data.num_classes, from_pml(theirs, reduction="none").loss, centers=2)
print(f"ArcFace with two centres a class: {trained(sub):.1f}")
margins = DBMLoss(data.class_counts, scale=16.0, base="bs", reduction="none")
print(f"DBM on balanced softmax: {trained(CosineHead(32, data.num_classes, margins)):.1f}")
