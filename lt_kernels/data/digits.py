"""The data set digits-lt: scikit-learn's bundled scans of handwritten digits, with an exponential tail."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.profiles import choose, exponential_counts


def scans(name: str = "digits-lt") -> tuple[Tensor, Tensor]:
    """Return all scans, float32 [1797, 1, 8, 8] in steps of 1/16 from 0 to 1, and their digits, for the set `name`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"{name} needs scikit-learn: pip install 'lt-kernels[train]'") from error
    bundle = load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16  # 17 grey levels, 0..16
    return images, torch.as_tensor(bundle.target, dtype=torch.int64)


@register("digits-lt")
def digits_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    test_per_class: int = 50,
) -> LongTailedData:
    """Tell the ten digits apart on 8 x 8 scans: inputs float32 [N, 1, 8, 8], target int64 [N].

    scikit-learn bundles 1,797 scans, 174 to 183 a digit (Alpaydin and Kaynak, 1998). `test_per_class` of each digit,
    drawn with `seed`, are the test set. Of the others the digits keep int(n_max * (1 / imbalance)^(c / 9)) samples,
    n_max = 174 - test_per_class: with the defaults (imbalance 100) 124, 74, 44, 26, 16, 9, 5, 3, 2, 1. Digit 0 is the
    head, digit 9 the tail. The images are shifted and scaled to mean 0 and standard deviation 1 over all training
    pixels. `cache_dir` is not used: nothing is downloaded or kept. Errors: ValueError for imbalance below 1 or above
    n_max, or test_per_class out of range; ImportError without scikit-learn.
    """
    images, target = scans()
    available = torch.bincount(target)
    rarest = int(available.min())
    if not 1 <= checks.whole("test_per_class", test_per_class) < rarest:
        raise ValueError(f"test_per_class must be in 1..{rarest - 1}, got {test_per_class}")
    counts = exponential_counts(rarest - test_per_class, len(available), 100 if imbalance is None else imbalance)
    test = choose(target, [test_per_class] * len(available), seed)
    rest = torch.ones(len(target), dtype=torch.bool).index_fill(0, test, False).nonzero().flatten()
    train = rest[choose(target[rest], counts, seed)]
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    return LongTailedData(
        name="digits-lt",
        train=(images[train], target[train]),
        test=(images[test], target[test]),
        class_counts=torch.tensor(counts),
        num_classes=len(counts),
        input_kind="image",
        class_names=tuple(str(digit) for digit in range(len(counts))),
        facts={"pixel_mean": float(mean), "pixel_deviation": float(deviation)},
    )
