"""Accuracy and calibration of many-, medium- and few-shot classes, gathered over batches by torchmetrics.

    python examples/torchmetrics_groups.py

The data are handwritten digits with a long tail; classes with more than 60 samples are many-shot, with less than 10
few-shot.
"""

import torch
from torchmetrics import MetricCollection

from lt_kernels.data import load
from lt_kernels.integrations.torchmetrics import (
    BalancedAccuracy,
    ExpectedCalibrationError,
    GeometricMean,
    GroupAccuracy,
)
from lt_kernels.losses import BalancedSoftmaxLoss

data = load("digits-lt", imbalance=50)
images, labels = data.train
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = BalancedSoftmaxLoss(data.class_counts)

for _ in range(30):
    for batch in torch.randperm(len(labels)).split(64):
        optimizer.zero_grad()
        criterion(model(images[batch]), labels[batch]).backward()
        optimizer.step()

groups = {"class_counts": data.class_counts, "many": 60, "few": 10}
measures = MetricCollection(
    {
        "balanced accuracy": BalancedAccuracy(10),
        "geometric mean": GeometricMean(10),
        "accuracy": GroupAccuracy(**groups),
        "calibration error": ExpectedCalibrationError(10, **groups),
    }
)
with torch.no_grad():
    for inputs, target in zip(data.test[0].split(100), data.test[1].split(100), strict=True):
        measures.update(model(inputs), target)
for name, value in measures.compute().items():
    print(f"{name}: {value:.3f}")
