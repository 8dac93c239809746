"""The registry of methods: what each name stands for. What takes more than a line is in `contrastive` and `stages`."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from lt_kernels import losses
from lt_kernels.train.methods import stages
from lt_kernels.train.methods.contrastive import CONTRASTIVE_AND_EXPERTS, DBM_DEFAULTS
from lt_kernels.train.methods.method import REPULSION_SUFFIX, LossFactory, Method, Options, Setting


def _plain(name: str) -> LossFactory:
    return lambda setting, options: getattr(losses, name)(**options)


def _counted(name: str, **fixed: Any) -> LossFactory:
    return lambda setting, options: getattr(losses, name)(setting.class_counts, **fixed, **options)


def _estimated_offset(setting: Setting, options: Options) -> nn.Module:
    return losses.EstimatedOffsetLoss(setting.num_classes, setting.in_features, **options)


_CE, _BS = _plain("CrossEntropyLoss"), _counted("BalancedSoftmaxLoss")
_LDAM = {"max_margin": 0.5, "scale": 30.0}
_OFFSET = {"center_weight": 1.0, "uniform_weight": 1.0, "centers": "wen", "center_rate": 0.5, "use": "subtract"}
_PREDICT = {key: value for key, value in _OFFSET.items() if key != "uniform_weight"}  # which is not in that loss
_SMOOTHING = {"head": 0.3, "tail": 0.0, "shape": "concave", "power": 1.0, "spread": "all"}
_ARB, _KANG, _DBM_PAPER = "ARB-Loss, 2022", "Kang et al., 2020", "DBM, 2025"
_KIM = "Kim, Hong and Kim"


def _batch_counts(setting: Setting, options: Options) -> nn.Module:
    return losses.ARBLoss(counts="batch", **options)


PLAIN: dict[str, Method] = {
    "ce": Method("cross-entropy", _CE, source="Bridle, 1990"),
    "zero-offset": Method("cross-entropy without a bias", _CE, source=_KIM, bias=False),
    "focal": Method("focal loss", _plain("FocalLoss"), {"gamma": 2.0}, "Lin et al., 2017"),
    "cb": Method(
        "class-balanced weights",
        _counted("ClassBalancedLoss"),
        {"beta": 0.9999, "gamma": 0.0, "average": "weighted", "normalize": True},
        "Cui et al., 2019",
    ),
    "bs": Method("balanced softmax", _BS, source="Ren et al., 2020"),
    "la": Method("logit adjustment", _counted("LogitAdjustmentLoss"), {"tau": 1.0}, "Menon et al., 2021"),
    "arb": Method("ARB-loss, counts of the training set", _counted("ARBLoss", counts="global"), source=_ARB),
    "arb-batch": Method("ARB-loss, counts of the batch", _batch_counts, source=_ARB),
    "lade": Method(
        "LADE",
        _counted("LADELoss"),
        {"alpha": 0.1, "lam": 0.1, "importance": "class", "classes": "all"},
        "Hong et al., 2021",
        mixup=False,
    ),
    "estimated-offset": Method("estimated offset", _estimated_offset, _OFFSET, _KIM, bias=False, mixup=False),
    "estimated-offset-no-uc": Method(
        "estimated offset without the uniform constraint",
        _estimated_offset,
        {**_OFFSET, "uniform_weight": 0.0},
        _KIM,
        bias=False,
        mixup=False,
    ),
    "uniform-offset": Method(
        "uniform constraint on the estimated offset, which is not subtracted",
        _estimated_offset,
        {**_OFFSET, "use": "regularize"},
        _KIM,
        bias=False,
        mixup=False,
    ),
    "estimated-offset-predict": Method(
        "cross-entropy, the offset of class centres learned beside it subtracted in prediction alone",
        _estimated_offset,
        {**_PREDICT, "center_weight": 0.0, "use": "predict"},
        _KIM,
        bias=False,
        mixup=False,
    ),
    "las": Method("label-aware smoothing", _counted("LabelAwareSmoothingLoss"), _SMOOTHING, "Zhong et al., 2021"),
}

MARGINS: dict[str, Method] = {
    "ldam": Method("LDAM", _counted("LDAMLoss"), _LDAM, "Cao et al., 2019", head="cosine"),
    "ldam-drw": Method(
        "LDAM, deferred re-weighting", _counted("LDAMLoss"), _LDAM, "Cao et al., 2019", head="cosine", deferred=True
    ),
    "dbm-ce": Method("DBM on cross-entropy", _counted("DBMLoss", base="ce"), DBM_DEFAULTS, _DBM_PAPER, "cosine"),
    "dbm-bs": Method(
        "DBM on balanced softmax", _counted("DBMLoss", base="bs"), DBM_DEFAULTS, _DBM_PAPER, head="cosine"
    ),
    "dbm-drw": Method(
        "DBM with deferred class-balanced weights",
        _counted("DBMLoss", base="cb"),
        DBM_DEFAULTS,
        _DBM_PAPER,
        head="cosine",
        deferred=True,
    ),
    "cosface": Method(
        "CosFace", _plain("CosFaceLoss"), {"margin": 0.35, "scale": 64.0}, "Wang et al., 2018", head="cosine"
    ),
    "arcface": Method(
        "ArcFace", _plain("ArcFaceLoss"), {"margin": 0.5, "scale": 64.0}, "Deng et al., 2019", head="cosine"
    ),
    "sphereface": Method(
        "SphereFace, annealed",
        _plain("SphereFaceLoss"),
        {"margin": 4, "scale": 1.0},
        "Liu et al., 2017",
        head="cosine",
        annealed=True,
    ),
}

SAMPLED: dict[str, Method] = {
    "ce-drw": Method("cross-entropy, deferred re-weighting", _CE, source="Cao et al., 2019", deferred=True),
    "focal-drw": Method(
        "focal loss, deferred re-weighting", _plain("FocalLoss"), {"gamma": 2.0}, "Cao et al., 2019", deferred=True
    ),
    "ce-balanced": Method("cross-entropy, class-balanced sampling", _CE, {"sampler": "class"}, _KANG),
    "ce-sqrt": Method("cross-entropy, square-root sampling", _CE, {"sampler": "sqrt"}, _KANG),
    "ce-progressive": Method("cross-entropy, progressively balanced sampling", _CE, {"sampler": "progressive"}, _KANG),
    "ce-mixup": Method("cross-entropy with MixUp", _CE, {"mixup_alpha": 1.0}, "Zhang et al., 2018"),
    "ce-cutmix": Method("cross-entropy with CutMix", _CE, {"cutmix_alpha": 1.0}, "Yun et al., 2019"),
    "arb-mixup": Method(
        "ARB-loss with MixUp, counts of the training set",
        _counted("ARBLoss", counts="global"),
        {"mixup_alpha": 1.0},
        _ARB,
    ),
    "arb-batch-mixup": Method("ARB-loss with MixUp, counts of the batch", _batch_counts, {"mixup_alpha": 1.0}, _ARB),
}

_RESCALED = Method(
    "cross-entropy, class weights re-scaled by the counts after training (RS)",
    _CE,
    {"gamma": 0.5},
    "Kim and Kim, 2020",
    bias=False,
    readout=stages.rescaled,
    readout_options=("gamma",),
)
AFTERWARDS: dict[str, Method] = {
    "pc-softmax": Method(
        "cross-entropy, logits compensated for the prior after training (post-hoc logit adjustment at tau 1)",
        _CE,
        {"tau": 1.0},
        "Hong et al., 2021; Menon et al., 2021",
        readout=stages.compensated,
        readout_options=("tau",),
    ),
    "empirical-offset": Method(
        "cross-entropy, the bias replaced by the offset of the mean training features after training",
        _CE,
        source=_KIM,
        closing=stages.with_empirical_offset,
    ),
    "ncm": Method(
        "cross-entropy, its classifier replaced after training by the nearest mean of the training features",
        _CE,
        {"distance": "cosine"},
        f"{_KANG}; Mensink et al., 2013",
        readout_options=("distance",),
        closing=stages.nearest_mean,
    ),
    "tau-norm": Method(
        "cross-entropy, class weights tau-normalised after training",
        _CE,
        {"tau": 1.0},
        _KANG,
        readout=stages.normalized,
        readout_options=("tau",),
    ),
    "wvn-rs": dataclasses.replace(
        _RESCALED,
        title="cross-entropy on unit class weights (WVN), re-scaled by the counts after training (RS)",
        unit_rows=True,
    ),
    "ce-rs": _RESCALED,
    "crt": Method("cross-entropy, classifier re-trained (cRT)", _CE, source=_KANG, second=stages.retrained),
    "lws": Method(
        "cross-entropy, class weights re-scaled by learned numbers (LWS)",
        _CE,
        {"scaled": "logits"},
        _KANG,
        head_options=("scaled",),
        second=stages.scaled,
    ),
    "crt-mixup": Method(
        "cross-entropy with MixUp, then the classifier re-trained without",
        _CE,
        {"mixup_alpha": 1.0},
        "Zhong et al., 2021",
        second=stages.retrained,
    ),
    "lws-mixup": Method(
        "cross-entropy with MixUp, then class weights re-scaled by learned numbers without",
        _CE,
        {"scaled": "logits", "mixup_alpha": 1.0},
        "Zhong et al., 2021",
        head_options=("scaled",),
        second=stages.scaled,
    ),
    "mislas": Method(
        "cross-entropy with MixUp, then label-aware smoothing and learned scales (MiSLAS)",
        _CE,
        {**_SMOOTHING, "mixup_alpha": 1.0},
        "Zhong et al., 2021",
        head_options=tuple(_SMOOTHING),
        second=stages.smoothed,
    ),
}

BASE_METHODS: dict[str, Method] = {**PLAIN, **MARGINS, **CONTRASTIVE_AND_EXPERTS, **SAMPLED, **AFTERWARDS}

# The methods that the repulsion's source combines it with.
REPELLED = ("ce", "ce-drw", "ldam-drw", "focal", "la", "bs")


def every_method(input_kind: str) -> list[str]:
    """All methods that can be trained on inputs of a kind ("image", "words", "scene"): mixing needs images, and where
    pixels have classes, neither samples nor rows of a second term have one.
    """
    mixing = {"mixup_alpha", "cutmix_alpha"}
    fitting = [name for name, line in BASE_METHODS.items() if input_kind == "image" or not mixing & set(line.defaults)]
    if input_kind == "scene":
        fitting = [name for name in fitting if _for_pixels(BASE_METHODS[name])]
    return [*fitting, *(f"{name}{REPULSION_SUFFIX}" for name in REPELLED)]


def _for_pixels(line: Method) -> bool:
    """Neither drawn by class nor trained twice, and a loss of one term: those of two know no mixing either."""
    return "sampler" not in line.defaults and line.second is None and line.mixup
