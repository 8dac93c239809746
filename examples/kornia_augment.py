"""kornia's augmentations and CutMix with balanced softmax, in a plain loop.

    python examples/kornia_augment.py

All of it runs on the device that the images are on, on whole batches.
"""

import torch
from kornia.augmentation import AugmentationSequential, RandomAffine, RandomCutMixV2, RandomErasing

from lt_kernels.data import load
from lt_kernels.functional import MixedTarget
from lt_kernels.losses import BalancedSoftmaxLoss
from lt_kernels.metrics import per_class_accuracy

data = load("digits-lt", imbalance=50)
images, labels = data.train
torch.manual_seed(0)
augment = AugmentationSequential(
    RandomAffine(degrees=10.0, translate=(0.1, 0.1), p=0.8),
    RandomErasing(p=0.3, scale=(0.02, 0.1)),
    data_keys=["input"],
)
cutmix = RandomCutMixV2(data_keys=["input", "class"], p=0.5, use_correct_lambda=True)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = BalancedSoftmaxLoss(data.class_counts)

for _ in range(40):
    for batch in torch.randperm(len(labels)).split(64):
        mixed, target = cutmix(augment(images[batch]), labels[batch])
        first, second, share = target[0].unbind(1)  # of one mixing: class, other class, share of the first
        optimizer.zero_grad()
        criterion(model(mixed), MixedTarget(first.long(), second.long(), share)).backward()
        optimizer.step()

with torch.no_grad():
    accuracy = per_class_accuracy(model(data.test[0]).argmax(1), data.test[1], data.num_classes)
print(f"mean accuracy of the classes: {accuracy.mean():.3f}")
