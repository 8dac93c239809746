"""A training loop in plain PyTorch, with balanced softmax in the place of cross-entropy.

    python examples/plain_loop.py

The data are handwritten digits with a long tail, which scikit-learn brings along.
"""

import torch

from lt_kernels.data import load
from lt_kernels.losses import BalancedSoftmaxLoss
from lt_kernels.metrics import per_class_accuracy

data = load("digits-lt", imbalance=50)
images, labels = data.train
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = BalancedSoftmaxLoss(data.class_counts)  # was: torch.nn.CrossEntropyLoss()

for _ in range(30):
    for batch in torch.randperm(len(labels)).split(64):
        optimizer.zero_grad()
        criterion(model(images[batch]), labels[batch]).backward()
        optimizer.step()

with torch.no_grad():
    accuracy = per_class_accuracy(model(data.test[0]).argmax(1), data.test[1], data.num_classes)
print(f"mean accuracy of the classes: {accuracy.mean():.3f}")
