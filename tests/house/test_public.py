"""What users may rely on: the public names, their documentation, and a core that needs torch and numpy alone."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.registry import NAMED as LOSSES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What is promised, by module.
PUBLIC = {
    "functional": "offset_cross_entropy linear_cross_entropy cosine_margin_cross_entropy logit_weight_repulsion "
    "lade_regularizer Accuracy CosFace ArcFace SphereFace LDAM DBM MixedTarget",
    "losses": "Loss CrossEntropyLoss BalancedSoftmaxLoss LogitAdjustmentLoss ARBLoss FocalLoss ClassBalancedLoss "
    "LDAMLoss DBMLoss CosFaceLoss ArcFaceLoss SphereFaceLoss LADELoss EstimatedOffsetLoss LabelAwareSmoothingLoss "
    "BalancedContrastiveLoss GMLLoss NCLLoss",
    "heads": "LinearHead CosineHead BalancedContrastiveHead GMLHead NCLHead",
    "metrics": "per_class_accuracy group_accuracy balanced_accuracy geometric_mean balance_metrics mean_iou "
    "false_positives cumulative_false_positives expected_calibration_error logit_statistics empirical_offsets "
    "estimated_offsets gradient_components gradient_parts boundary_shift affinity_matrix angular_distance class_means "
    "class_similarity fisher_separability",
    "regularizers": "LogitWeightRepulsion LADERegularizer UniformOffset CenterLoss",
    "schedules": "DeferredReweighting PolynomialDecay LinearWarmup SphereFaceAnnealing",
    "priors": "log_prior class_balanced_weight ldam_margin dbm_margin label_aware_smoothing class_counts_of",
    "posthoc": "logit_adjustment pc_softmax tau_normalize rescale_by_count LearnableWeightScaling empirical_offset "
    "nearest_class_mean",
    "contrastive": "balanced_contrastive class_mean_cross_entropy",
    "ops": "memory_budget use_kernels linear_policy extension_status kernels_status instruction_set",
    "distributed": "RankError clip_grad_norm_ gather_batch",
    "doctor": "main report",
}
# What is promised beside a library, by its name: only where that is installed.
INTEGRATIONS = {
    (
        "torchmetrics",
        "integrations.torchmetrics",
    ): "BalancedAccuracy ExpectedCalibrationError GeometricMean GroupAccuracy",
    ("skorch", "integrations.skorch"): "LongTailClassifier probabilities",
    ("transformers", "integrations.transformers"): "compute_loss_func fuse_causal_lm use_loss",
    ("pytorch_metric_learning", "integrations.metric_learning"): "from_pml miner_weights",
}
PUBLIC |= {module: names for (library, module), names in INTEGRATIONS.items() if importlib.util.find_spec(library)}
NAMES = {f"{module}.{name}": (module, name) for module, names in PUBLIC.items() for name in names.split()}


def module_of(name: str) -> object:
    return importlib.import_module(f"lt_kernels.{name}")


CORE = """
import importlib, importlib.abc, os, pathlib, sys, warnings

os.environ.pop("LT_KERNELS_REQUIRE_EXTENSION", None)  # the extension is not to be found here
BLOCKED = {
    "triton", "lightning", "pytorch_lightning", "torchmetrics", "tensorboard", "rich", "yaml", "jsonargparse", "PIL",
    "sklearn", "scipy", "matplotlib", "torchvision", "timm", "kornia", "pybind11", "ninja", "pytest", "hypothesis",
}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name == "lt_kernels._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
root = pathlib.Path(sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for path in sorted((root / "lt_kernels").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not {"train", "data", "triton", "integrations", "__main__"} & set(parts):
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
    import torch
    from lt_kernels import doctor
    from lt_kernels.heads import CosineHead
    from lt_kernels.losses import LDAMLoss
    head = CosineHead(4, 3, LDAMLoss([5, 3, 1]))
    for _ in range(2):
        head(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
print(sum("lt_kernels" in str(warning.message) for warning in said))
assert "not loaded" in doctor.report() and "reference" in doctor.report()
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""


def test_core_needs_torch_and_numpy_alone_and_says_once_what_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "1", done.stdout


def test_public_names_are_those_that_are_promised() -> None:
    assert [full for full, (module, name) in NAMES.items() if not hasattr(module_of(module), name)] == []
    for module, names in PUBLIC.items():
        more = set(LOSSES) if module == "losses" else set()  # a new loss is named there
        assert set(getattr(module_of(module), "__all__", names.split())) == set(names.split()) | more, module


def test_public_names_say_what_they_are() -> None:
    texts = {full: getattr(module_of(module), name).__doc__ or "" for full, (module, name) in NAMES.items()}
    assert [full for full, text in texts.items() if len(text.split()) <= 5] == []
    made_by_dataclass = [full for full, (_, name) in NAMES.items() if texts[full].startswith(f"{name}(")]
    assert made_by_dataclass == []


def test_every_public_name_is_in_a_document() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    promised = {full: name for full, (module, name) in NAMES.items() if module not in ("priors", "doctor")}
    assert [full for full, name in promised.items() if not re.search(rf"\b{name}\b", text)] == []
