"""The files of runs and comparisons: what they are called, which folder is whose, and how they are read back."""

from typing import Literal

Which = Literal["last", "best"]  # of a run's checkpoints

CONFIG = "config.yaml"
LAST = "last.ckpt"
BEST = "best.ckpt"
RESULT = "result.json"
METRICS = "metrics.csv"
COMPONENTS = "components.csv"
PARTS = "gradient_parts.csv"
TENSORBOARD = "tensorboard"
LOGGED = "logger.json"  # what a logger was told
FAILED = "failed.txt"  # why a run ended before its time, where that was not from outside
COMPARISON = "comparison.yaml"  # marks the folder of a comparison
KEPT = (LAST, RESULT)  # what is lost when a run begins anew
OWN = (*KEPT, BEST, METRICS, COMPONENTS, PARTS, TENSORBOARD, LOGGED, FAILED)
