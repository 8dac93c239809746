"""A vision transformer of transformers, fine-tuned by its Trainer with balanced softmax in the place of cross-entropy.

    python examples/transformers_trainer.py

The data are handwritten digits with a long tail, which scikit-learn brings along; nothing is downloaded. With weights
of your own: ViTForImageClassification.from_pretrained(FOLDER, num_labels=10).
"""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from lt_kernels.data import load
from lt_kernels.integrations.transformers import use_loss
from lt_kernels.losses import BalancedSoftmaxLoss
from lt_kernels.metrics import balanced_accuracy, per_class_accuracy

data = load("digits-lt", imbalance=50)


def rows(part):
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(*part, strict=True)]


def accuracy(predicted):
    found = torch.from_numpy(predicted.predictions).argmax(1), torch.from_numpy(predicted.label_ids)
    return {"balanced_accuracy": balanced_accuracy(per_class_accuracy(*found, data.num_classes))}


torch.manual_seed(0)
config = ViTConfig(image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=64, num_labels=data.num_classes)  # fmt: skip
model = use_loss(ViTForImageClassification(config), BalancedSoftmaxLoss(data.class_counts))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(output_dir=folder, num_train_epochs=25, per_device_train_batch_size=16,
        learning_rate=1e-3, lr_scheduler_type="linear", report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_steps=100)  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows(data.train), eval_dataset=rows(data.test),
                      compute_metrics=accuracy)  # fmt: skip
    trainer.train()
    print(trainer.evaluate())
