"""A network and the mixing of timm with balanced softmax, in a plain loop.

    python examples/timm_mixup.py

timm's Mixup and CutMix give class probabilities; `MixedTarget.from_dense` finds the two classes and their shares, which
every loss of the package takes, margins too. The weights are random here: `pretrained=True` fetches trained ones.
"""

import timm
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2

from lt_kernels.data import load
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import LinearHead
from lt_kernels.losses import BalancedSoftmaxLoss
from lt_kernels.metrics import per_class_accuracy

SMOOTHING = 0.1
data = load("digits-lt", imbalance=20)
images, test = (torch.nn.functional.interpolate(inputs, scale_factor=4) for inputs in (data.train[0], data.test[0]))
labels = data.train[1]
torch.manual_seed(0)
backbone = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
criterion = BalancedSoftmaxLoss(data.class_counts, label_smoothing=SMOOTHING)  # was: timm's SoftTargetCrossEntropy()
head = LinearHead(backbone.num_features, data.num_classes, criterion)
model = torch.nn.ModuleDict({"backbone": backbone, "head": head})
mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=0.2, label_smoothing=SMOOTHING, num_classes=data.num_classes)
optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)

for _ in range(10):
    for batch in torch.randperm(len(labels)).split(64):
        if len(batch) % 2:  # timm mixes an even number of images
            batch = batch[:-1]
        mixed, dense = mixup(images[batch].clone(), labels[batch])  # which changes the images in place
        target = MixedTarget.from_dense(dense, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        head(backbone(mixed), target).backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    predicted = head(backbone(test)).argmax(1)
accuracy = per_class_accuracy(predicted, data.test[1], data.num_classes)
print(f"mean accuracy of the classes: {accuracy.mean():.3f}")
