"""Contrastive and multi-expert methods: their loss has a second term, over views, a queue of keys or experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from lt_kernels import losses
from lt_kernels.core import checks
from lt_kernels.functional import DBM
from lt_kernels.heads import BalancedContrastiveHead, GMLHead, NCLHead
from lt_kernels.train.methods.method import LOSS_OPTIONS, HeadFactory, LossFactory, Method, Options, Setting

DBM_DEFAULTS: Options = {"max_margin": 0.1, "tau": 1.0, "instance": 1.0, "scale": 30.0, "applies": "hard"}
_BCL = {"classification_weight": 2.0, "contrastive_weight": 0.6, "temperature": 0.1}
# hidden 0: as wide as the features; with three views the first is classified and the others are contrasted
_BCL_HEAD = {"hidden": 0, "out_features": 128, "views": 2}
_GML = {"temperature": 0.1, "classification_weight": 1.0, "contrastive_weight": 1.0, "distillation_weight": 0.0}
_GML_HEAD = {"out_features": 32, "queue": 4096, "per_class": 2}
_NCL = {"hard_share": 0.3, "distillation": 0.6, "unselected": "zero"}
_NCL_HEAD = {"experts": 3}


def _head(kind: Any, **fixed: Any) -> HeadFactory:
    return lambda setting, loss, options: kind(setting.in_features, setting.num_classes, loss, **fixed, **options)


def _base(setting: Setting, options: Options) -> losses.Loss:
    """Balanced softmax on DBM's margins if the options have them, or logit adjustment."""
    margins = {key: options.pop(key) for key in DBM_DEFAULTS if key in options}
    own = {key: options.pop(key) for key in LOSS_OPTIONS if key in options}
    if margins:
        return losses.DBMLoss(setting.class_counts, base="bs", **margins, **own)
    return losses.LogitAdjustmentLoss(setting.class_counts, **own)


def _contrastive(setting: Setting, options: Options) -> nn.Module:
    return losses.BalancedContrastiveLoss(_base(setting, options), **options)


def _gml(setting: Setting, options: Options) -> nn.Module:
    return losses.GMLLoss(_base(setting, options), setting.class_counts, **options)


def _ncl(setting: Setting, options: Options) -> nn.Module:
    for key in set(LOSS_OPTIONS) & set(options):
        raise ValueError(f"{key} must be left out: the losses of its experts have none, got {options[key]!r}")
    share = options.pop("hard_share")
    if not 0 < share <= 1:
        raise ValueError(f"hard_share must be above 0 and at most 1, got {share!r}")
    scale = options.pop("scale", None)
    margins = {key: options.pop(key) for key in DBM_DEFAULTS if key in options}
    margin = DBM(setting.class_counts, **margins) if margins else None
    hard = max(1, round(share * setting.num_classes))
    return losses.NCLLoss(setting.class_counts, hard_categories=hard, margin=margin, scale=scale, **options)


def _method(title: str, loss: LossFactory, source: str, head: HeadFactory, of_head: Options, **rest: Any) -> Method:
    return Method(title, loss, rest.pop("defaults"), source, head, tuple(of_head), mixup=False, **rest)


# Of the cosines of a base without margins; DBM has its own.
_SCALE = {"scale": 30.0}
_BCL_PARTS: Options = {"defaults": {**_BCL, **_BCL_HEAD}, "views": 2}
_GML_PARTS: Options = {"defaults": {**_GML, **_GML_HEAD, "teacher": ""}, "views": 2}
_QUEUE, _EXPERTS = _head(GMLHead), _head(NCLHead)


def _prototypes(setting: Setting, loss: Any, options: Options) -> nn.Module:
    hidden, views = checks.whole("hidden", options["hidden"], 0) or None, options["views"]
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    contrasted = "later" if views > 2 else "all"
    sizes: Options = {"hidden": hidden, "out_features": options["out_features"], "contrasted": contrasted}
    sizes |= {"scale": options["scale"]} if "scale" in options else {}
    return BalancedContrastiveHead(setting.in_features, setting.num_classes, loss, **sizes)


def _scaled(parts: Options, **changes: Any) -> Options:
    return {**parts, "defaults": {**parts["defaults"], **_SCALE, **changes}}


def _with_dbm(parts: Options, **changes: Any) -> Options:
    return {**parts, "defaults": {**parts["defaults"], **DBM_DEFAULTS, **changes}}


CONTRASTIVE_AND_EXPERTS: dict[str, Method] = {
    "bcl": _method(
        "balanced contrastive learning",
        _contrastive,
        "Zhu et al., 2022",
        _prototypes,
        {**_BCL_HEAD, **_SCALE},
        **_scaled(_BCL_PARTS),
    ),
    "gml": _method(
        "GML loss on a queue of keys",
        _gml,
        "Suh and Seo, 2023",
        _QUEUE,
        {**_GML_HEAD, **_SCALE},
        **_scaled(_GML_PARTS),
    ),
    "ncl": _method(
        "nested collaborative learning of experts",
        _ncl,
        "Li et al., 2022",
        _EXPERTS,
        {**_NCL_HEAD, **_SCALE},
        **_scaled({"defaults": {**_NCL, **_NCL_HEAD}}, scale=16.0),
    ),
    "dbm-bcl": _method(
        "DBM with balanced contrastive learning",
        _contrastive,
        "DBM, 2025",
        _prototypes,
        _BCL_HEAD,
        **_with_dbm(_BCL_PARTS),
    ),
    "dbm-gml": _method("DBM with the GML loss", _gml, "DBM, 2025", _QUEUE, _GML_HEAD, **_with_dbm(_GML_PARTS)),
    "dbm-ncl": _method(
        "DBM with nested collaborative learning",
        _ncl,
        "DBM, 2025",
        _EXPERTS,
        _NCL_HEAD,
        **_with_dbm({"defaults": {**_NCL, **_NCL_HEAD}}, scale=16.0),
    ),
}
