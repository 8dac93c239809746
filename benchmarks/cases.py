"""Every measured operator, shape and dtype, declared once: the benchmark, its tests and the README read this list."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.registry import NAMED, OF_FEATURES

# name: (rows N, classes C, features d) on a CPU.
SHAPES = {
    "cifar": (128, 100, 64),
    "imagenet-lt": (256, 1_000, 2_048),
    "inat": (256, 8_142, 2_048),
    "inat-512": (512, 8_142, 2_048),
    "imagenet-4096": (4_096, 1_000, 2_048),
    "vocab": (1_024, 128_256, 256),
    "faces": (512, 200_000, 128),
    "lwr-inat": (0, 8_142, 2_048),
    "lwr-64k": (0, 65_536, 512),
}
# The sizes that a GPU is measured at, where they are not the CPU's.
CUDA_SHAPES = {
    **{name: shape for name, shape in SHAPES.items() if name != "lwr-64k"},
    "vocab": (8_192, 128_256, 2_048),
    "vocab-4096": (4_096, 128_256, 2_048),
    "faces": (4_096, 1_000_000, 512),
    "lwr-100k": (0, 100_000, 512),
    "lwr-inat-sparse": SHAPES["lwr-inat"],
    "lwr-100k-sparse": (0, 100_000, 512),
}
# How the names of cases end whose class weights have few active pairs each (benchmarks/problems.py).
SPARSE = "-sparse"
MODEL_SHAPES = ("cifar", "imagenet-lt", "inat", "vocab", "faces")
# Where memory is the question: the logits are large, or the eager form holds several copies of them.
MEMORY = ("inat", "vocab", "vocab-4096", "faces", "lwr-inat", "lwr-64k", "lwr-100k", "lwr-100k-sparse")
# How the names of the points of a sweep begin (benchmarks/growth.py); their memory is always measured.
SWEEP = "along-"
# Where a GPU waits for its host: there the replay of a CUDA graph is measured too.
QUICK = ("cifar", "imagenet-lt", "inat", "inat-512", "lwr-inat", "lwr-inat-sparse")


@dataclass(frozen=True)
class Case:
    """One operator at one shape and dtype; `loss` names the class for the operator "losses"."""

    operator: str
    name: str
    rows: int
    classes: int
    features: int
    dtype: torch.dtype = torch.float32
    loss: str = ""

    @property
    def sizes(self) -> str:
        """The sizes as the results file writes them."""
        parts = [("N", self.rows), ("C", self.classes), ("d", self.depth)]
        return " ".join(f"{letter}={size}" for letter, size in parts if size)

    @property
    def depth(self) -> int:
        """Features d that the operator multiplies; 0 where it is given logits or cosines."""
        return 0 if self.operator in LOGITS or (self.loss and self.loss not in OF_FEATURES) else self.features

    @property
    def dtype_name(self) -> str:
        """float32, bfloat16, ..."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def measures_memory(self) -> bool:
        """Whether peak memory is measured for this case."""
        return self.name in MEMORY or self.name.startswith(SWEEP)

    @property
    def is_quick(self) -> bool:
        """Whether launches take about as long as the work on a GPU."""
        return self.name in QUICK or self.operator == "losses"

    @property
    def ours_alone(self) -> bool:
        """Whether every competitor would need more memory or minutes than it is worth: several C x C matrices."""
        return self.operator == "logit_weight_repulsion" and self.classes > 20_000

    def tiny(self) -> Case:
        """The same case at a size that a test can afford."""
        return replace(self, rows=min(self.rows, 8), classes=min(self.classes, 24), features=min(self.features, 16))


LOGITS = ("cross_entropy", "offset_cross_entropy", "lade_regularizer")
HALF = ("offset_cross_entropy", "linear_cross_entropy")


def cases(device: str = "cpu") -> list[Case]:
    """The whole list for a kind of device ("cpu" or "cuda")."""
    return cuda_cases() if device == "cuda" else cpu_cases()


def cpu_cases() -> list[Case]:
    """float32, and two operators in bfloat16."""
    every = _of_shapes(SHAPES)
    halves = [case for case in every if case.name in ("imagenet-lt", "inat") and case.operator in HALF]
    return every + [replace(case, dtype=torch.bfloat16) for case in halves]


def cuda_cases() -> list[Case]:
    """Products and rows in bfloat16; in float32 too where the shape is small, and what is kept in float32 anyway.

    "cross_entropy" is the plain one, without an offset: what other people's kernels are made for.
    """
    every = [case for case in _of_shapes(CUDA_SHAPES) if case.name != "faces" or case.depth]
    halves = [replace(case, dtype=torch.bfloat16) for case in every if case.operator in (*HALF, COSINE)]
    plain = [Case("cross_entropy", name, *CUDA_SHAPES[name], torch.bfloat16) for name in ("vocab-4096", "inat")]
    wide = [case for case in every if case.operator not in (*HALF, COSINE) or case.name in ("cifar", "inat")]
    return halves + plain + wide


def _of_shapes(shapes: dict[str, tuple[int, int, int]]) -> list[Case]:
    logits = [name for name in shapes if not name.startswith("lwr")]
    every = [Case("offset_cross_entropy", name, *shapes[name]) for name in logits]
    for operator in ("linear_cross_entropy", COSINE):
        every += [Case(operator, name, *shapes[name]) for name in MODEL_SHAPES]
    every += [Case("logit_weight_repulsion", name, *shapes[name]) for name in shapes if name.startswith("lwr")]
    every += [Case("lade_regularizer", name, *shapes[name]) for name in ("cifar", "imagenet-lt", "inat")]
    return every + [Case("losses", loss, *shapes["cifar"], loss=loss) for loss in NAMED]


COSINE = "cosine_margin_cross_entropy"
