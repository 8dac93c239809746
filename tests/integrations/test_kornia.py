"""kornia's labels of mixed images as the guide reads them: the shares are those of the pixels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("kornia", reason="the extra [integrations] is not installed")

import kornia.augmentation as K

from lt_kernels.functional import MixedTarget

LABELS = torch.arange(12)
IMAGES = LABELS.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone() / 12  # the mean of an image tells its class
KEYS = ["input", "class"]


def assert_shares(images: torch.Tensor, target: MixedTarget) -> None:
    assert target.first.tolist() == LABELS.tolist()
    assert (target.second != target.first).any()
    shares = target.lam * target.first + (1 - target.lam) * target.second
    torch.testing.assert_close(12 * images.mean((1, 2, 3)), shares, rtol=1e-4, atol=1e-4)


def test_mixup():
    images, t = K.RandomMixUpV2(data_keys=KEYS, p=1.0)(IMAGES, LABELS)
    assert_shares(images, MixedTarget(t[:, 0].long(), t[:, 1].long(), 1 - t[:, 2]))


def test_cutmix():
    images, t = K.RandomCutMixV2(data_keys=KEYS, p=1.0, use_correct_lambda=True)(IMAGES, LABELS)
    assert_shares(images, MixedTarget(t[0, :, 0].long(), t[0, :, 1].long(), t[0, :, 2]))
