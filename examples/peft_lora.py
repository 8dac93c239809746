"""Low-rank adapters (LoRA, by PEFT) in a vision transformer, with a head of this package that is trained whole.

    python examples/peft_lora.py

The transformer learns five of the digits first, as a stand-in for a pretrained one; then its weights stay as they are,
and adapters and head learn all ten, of which most have few images. modules_to_save keeps the head with the adapters.
"""

import copy
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from lt_kernels.data import load
from lt_kernels.heads import LinearHead
from lt_kernels.integrations.transformers import use_loss
from lt_kernels.losses import BalancedSoftmaxLoss, CrossEntropyLoss
from lt_kernels.metrics import balanced_accuracy, per_class_accuracy

data = load("digits-lt", imbalance=50)
images, labels = data.train
config = ViTConfig(image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=64, num_labels=5)  # fmt: skip


def with_head(backbone, loss, classes):
    backbone.classifier = LinearHead(config.hidden_size, classes, loss)
    return use_loss(backbone, loss)


def train(model, rows, steps):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (64,))]
        optimizer.zero_grad()
        model(pixel_values=images[batch], labels=labels[batch]).loss.backward()
        optimizer.step()


torch.manual_seed(0)
pretrained = with_head(ViTForImageClassification(config), CrossEntropyLoss(), 5)
train(pretrained, (labels < 5).nonzero()[:, 0], 150)
base = with_head(pretrained, BalancedSoftmaxLoss(data.class_counts), 10)
adapters = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
model = get_peft_model(copy.deepcopy(base), adapters)
model.print_trainable_parameters()
train(model, torch.arange(len(labels)), 150)

with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model.save_pretrained(folder)  # the adapters, the head and the tables of its loss
    again = PeftModel.from_pretrained(base, folder).eval()
    predicted = again(pixel_values=data.test[0]).logits.argmax(1)
print(f"mean accuracy of the classes: {balanced_accuracy(per_class_accuracy(predicted, data.test[1], 10)):.3f}")
