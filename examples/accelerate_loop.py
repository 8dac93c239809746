"""A training loop of accelerate with a head of this package, on any number of processes.

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py

The head goes from features to the loss, here that of DBM's margins; gather_for_metrics brings the predictions of all
processes together, without the samples that fill up the last batch.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

from lt_kernels.data import load
from lt_kernels.heads import CosineHead
from lt_kernels.losses import DBMLoss
from lt_kernels.metrics import balanced_accuracy, per_class_accuracy


class Classifier(torch.nn.Module):
    """A network and its head: the loss with labels, cosines without."""

    def __init__(self, class_counts):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU())
        self.head = CosineHead(128, len(class_counts), DBMLoss(class_counts, base="bs"))

    def forward(self, images, labels=None):
        return self.head(self.network(images), labels)


accelerator = Accelerator(cpu=True)  # without cpu=True: the device that is there
data = load("digits-lt", imbalance=50)
set_seed(0)
model = Classifier(data.class_counts)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
train = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True)
test = DataLoader(TensorDataset(*data.test), batch_size=64)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

for _ in range(30):
    for images, labels in train:
        optimizer.zero_grad()
        accelerator.backward(model(images, labels))
        optimizer.step()

model.eval()
with torch.no_grad():
    found = [accelerator.gather_for_metrics((model(images).argmax(1), labels)) for images, labels in test]
predicted, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
accuracy = balanced_accuracy(per_class_accuracy(predicted, labels, data.num_classes))
accelerator.print(f"mean accuracy of the classes: {accuracy:.3f} of {len(labels)} images")
