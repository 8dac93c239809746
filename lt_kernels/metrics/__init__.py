"""How well a classifier does on every class, not only on frequent ones; its errors; the geometry of its classes.

Values only: inputs of any floating dtype, float64 out, no gradient. docs/metrics.md has each of them with an example.
"""

from lt_kernels.metrics.accuracy import balanced_accuracy, geometric_mean, group_accuracy, per_class_accuracy
from lt_kernels.metrics.errors import (
    cumulative_false_positives,
    expected_calibration_error,
    false_positives,
    logit_statistics,
    mean_iou,
)
from lt_kernels.metrics.geometry import (
    affinity_matrix,
    angular_distance,
    balance_metrics,
    boundary_shift,
    class_means,
    class_similarity,
    empirical_offsets,
    estimated_offsets,
    fisher_separability,
)
from lt_kernels.metrics.gradients import gradient_components, gradient_parts

__all__ = [
    "affinity_matrix",
    "angular_distance",
    "balance_metrics",
    "balanced_accuracy",
    "boundary_shift",
    "class_means",
    "class_similarity",
    "cumulative_false_positives",
    "empirical_offsets",
    "estimated_offsets",
    "expected_calibration_error",
    "false_positives",
    "fisher_separability",
    "geometric_mean",
    "gradient_components",
    "gradient_parts",
    "group_accuracy",
    "logit_statistics",
    "mean_iou",
    "per_class_accuracy",
]
