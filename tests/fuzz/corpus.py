"""Cases that once had a wrong answer; they always run. A failure of the fuzz prints what belongs here."""

from __future__ import annotations

from fuzz.case import Case

CORPUS = [
    # the gradient of an ignored row, times an incoming one that is not finite
    Case(rows=2, ignored="all", reduction="sum", incoming="inf"),
    Case(rows=2, ignored="all", incoming="inf"),
    Case(function="linear", rows=2, ignored="some", incoming="inf"),
    Case(function="cosine", ignored="all", margin=("SphereFace", 4)),
    Case(function="cosine", rows=3, classes=16, features=4, ignored="some", margin=("SphereFace", 4), incoming="inf"),
    Case(function="loss", loss="LDAMLoss", rows=3, classes=63, ignored="all", weight="given", incoming="inf"),
    Case(
        function="cosine", rows=16, classes=17, target="mixed", ignored="some", weight="zeros", scale=30.0, seed=263293
    ),
    # the log-sum-exp of a row at the size of its logits
    Case(rows=2, classes=3, shift=1e4),
    Case(rows=2, classes=7, gamma=0.5, spread=50.0, shift=1e4),
    Case(single=True, target="probability", shift=1e4),
    Case(rows=2, classes=3, shift=1e6, special="equal"),
    Case(rows=2, classes=2000, shift=1e10, special="equal"),
    Case(classes=3, places=(2,), target="mixed", offset="class", shift=1e6, seed=226986),
    Case(rows=2, classes=1024, smoothing=0.1, spread=50.0, wing="compiled"),
    Case(rows=2, special="inf", wing="reference"),
    Case(rows=2, target="mixed", special="inf"),
    # the probability of the target as 1 less that of all others
    Case(rows=5, classes=127, smoothing=1.0, reduction="sum", spread=0.01, wing="reference"),
    # a class of weight 0 and probability 0
    Case(weight="zeros", offset="class", smoothing=0.1, special="-inf"),
    # what cancels in a slope
    Case(classes=1, places=(3, 2), target="probability", weight="given", reduction="sum", seed=8054),
    Case(function="lade", settings=(("lam", 2.0),), classes=1, spread=0.01, seed=106480),
    Case(function="lade", settings=(("lam", 0.0),), rows=2, classes=1, spread=0.01, shift=1e4),
    # shapes
    Case(places=(0,), offset="target"),
    Case(rows=0, offset="target"),
    Case(function="linear", rows=0, offset="target"),
    Case(function="cosine", rows=0, offset="target", scale=30.0),
    Case(function="linear_head", rows=2, features=3, places=(3,), reduction="none"),
    Case(function="cosine_head", loss="FocalLoss", rows=9, classes=9, places=(2,), reduction="none", scale=30.0),
    Case(function="linear_head", rows=3, places=(2,), target="mixed rows"),
    Case(function="cosine_head", rows=0, scale=30.0),
    # norms of half precision
    Case(function="cosine", dtype="float16", rows=2, classes=3, special="long", scale=30.0),
    Case(function="cosine_head", loss="ArcFaceLoss", dtype="float16", rows=2, classes=3, special="long"),
    Case(function="cosine_head", dtype="bfloat16", rows=2, classes=3, special="long", mode="autocast", scale=30.0),
    # an int8 product of one column
    Case(function="repulsion", classes=600, features=1),
    Case(function="repulsion", classes=1),
    Case(function="linear", classes=1, target="probability", offset="row"),
    # the target's cosine is NaN
    Case(function="loss", loss="SphereFaceLoss", rows=2, special="nan", seed=67111),
    # all class weights alike: the sum of their pushes is parallel to each, and nothing may be left of it
    Case(function="repulsion", rows=2, classes=1024, layout="expanded", reduction="sum"),
    Case(function="repulsion", rows=2, classes=1023, layout="expanded", reduction="sum", seed=60101),
    # logits that are NaN in a row without a gradient, and logits far above their cap, whose slope is small
    Case(function="linear", rows=2, ignored="all", offset="class", softcap=1.5, reduction="sum", special="nan"),
    Case(rows=15, classes=63, ignored="some", offset="class", absent=True, softcap=1.5, special="nan", seed=946466),
    Case(rows=2, softcap=1.5, ahead=1, shift=10000.0, special="nan"),
    Case(rows=9, softcap=1.5, reduction="sum", spread=50.0, seed=130771),
]
