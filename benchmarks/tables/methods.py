"""Writes the tables of docs/methods.md, every method that is trained by name and those of published tables that are
not, and of docs/math.md, every named loss.

What a loss sets is said in `benchmarks.registry`; only what a method adds to its loss is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.registry import NAMED, of_cosine
from benchmarks.results import ROOT
from benchmarks.tables.markdown import markdown, section
from lt_kernels.train.methods.method import (
    ANNEALING_DEFAULTS,
    DEFERRED_DEFAULTS,
    RUN_OPTIONS,
    STAGE_DEFAULTS,
    Method,
    Setting,
)
from lt_kernels.train.methods.registry import BASE_METHODS
from lt_kernels.train.published import carried, methods_not_here
from lt_kernels.train.recipes import RECIPES, read_settings

DOCUMENT = ROOT / "docs" / "methods.md"
LOSSES = ROOT / "docs" / "math.md"
_SETS = ("offset $b_c$", r"margin $\phi$", "weight $w_c$", r"$\gamma$", r"smoothing $\varepsilon$")
LOSS_HEADER = ("loss", *_SETS, "source")
HEADER = ("method", "what it is", "source", "form", "options and defaults", "recipes for", "tests")
_HEADS, _OFFSETS, _LOSSES = "test_published_heads", "test_published_offset", "test_published_losses"
_MARGINS, _STAGES, _LADE = "test_published_margins", "test_stages", "test_columns"
_DBM_FORM = r"$b = 0$ ($\log p$ for bs), $\phi = \cos(\theta + m_y (1 + \lambda h d))$, $s$"

# Where a method is more than its loss: the form in the three numbers of docs/math.md (offset b, margin phi, scale s,
# weight w, gamma; z is what is not said), or what is added to it; and the test files, without their ending, that hold
# the method to its formula.
FORMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "arb": (r"$b = \log p$: equal to bs", (_LOSSES, "test_published_selfcheck")),
    "arb-batch": (r"$b = \log N_c$ of the batch, $-\infty$ where absent", (_LOSSES,)),
    "lade": (r"$b = \log p$, plus $\alpha$ LADER", (_LADE, _LOSSES)),
    "zero-offset": (r"ce, its logits without a bias", (_LOSSES, _STAGES)),
    "estimated-offset": (r"$b = -\frac12 \mu \cdot w$, plus centre loss and uniform constraint", (_HEADS,)),
    "estimated-offset-no-uc": (r"the same without the constraint", (_HEADS,)),
    "estimated-offset-predict": (r"$b = -\frac12 \mu \cdot w$ in prediction alone, with learned centres", (_HEADS,)),
    "uniform-offset": (r"$b = 0$, plus centre loss and uniform constraint", (_HEADS,)),
    "ldam-drw": (r"ldam, then $w$ of cb", (_LOSSES, "test_train")),
    "dbm-ce": (_DBM_FORM, (_LOSSES, _MARGINS)),
    "dbm-bs": (_DBM_FORM, (_LOSSES, _MARGINS)),
    "dbm-drw": (r"dbm-ce, then $w$ of cb", (_LOSSES, _MARGINS)),
    "bcl": (r"la, plus a row log-sum-exp over views and prototypes", ("test_contrastive", "test_contrastive_head")),
    "gml": (r"la, plus two row log-sum-exps over a queue", ("test_gml", "test_gml_head")),
    "ncl": (r"bs for each expert, over all and over hard classes, plus divergences", ("test_experts",)),
    "dbm-bcl": (r"bcl with dbm-bs in the place of la", ("test_contrastive", "test_second_parts")),
    "dbm-gml": (r"gml with dbm-bs in the place of la", ("test_gml", "test_second_parts")),
    "dbm-ncl": (r"ncl with dbm-bs for each expert", ("test_experts",)),
    "ce-drw": (r"ce, then $w$ of cb", (_LOSSES, "test_train")),
    "focal-drw": (r"focal, then $w$ of cb", (_LOSSES, "test_train")),
    "ce-balanced": (r"ce", ("test_loader",)),
    "ce-sqrt": (r"ce", ("test_loader",)),
    "ce-progressive": (r"ce", ("test_loader",)),
    "ce-mixup": (r"ce of two targets", ("test_laws_mixed", _STAGES)),
    "ce-cutmix": (r"ce of two targets", ("test_laws_mixed", _STAGES)),
    "arb-mixup": (r"arb of two targets", ("test_laws_mixed", _STAGES)),
    "arb-batch-mixup": (r"arb-batch of two targets", ("test_laws_mixed", _STAGES)),
    "pc-softmax": (r"ce; read out as $z - \tau \log p$", ("test_posthoc", _STAGES)),
    "empirical-offset": (
        r"ce; then $b = -\frac12 m \cdot w$, $m$ the mean training features",
        ("test_posthoc", _STAGES),
    ),
    "ncm": (r"ce; read out as $x \cdot m / \lvert m \rvert$, $m$ as above", ("test_posthoc", _STAGES)),
    "tau-norm": (r"ce; read out as $x \cdot w / \lvert w \rvert^\tau$", ("test_posthoc", _STAGES)),
    "ce-rs": (r"ce; read out as $x \cdot w (n_\max / n)^\gamma$", ("test_posthoc", _STAGES)),
    "wvn-rs": (
        r"ce with $\lvert w \rvert = 1$; read out as $x \cdot w (n_\max / n)^\gamma$",
        ("test_posthoc", _STAGES),
    ),
    "crt": (r"ce; then ce of a new classifier, class-balanced", (_STAGES,)),
    "lws": (r"ce; then ce of $s_c z_c$, class-balanced, $s$ alone trained", ("test_posthoc", _STAGES)),
    "crt-mixup": (r"ce-mixup; then ce of a new classifier, class-balanced", (_STAGES,)),
    "lws-mixup": (r"ce-mixup; then ce of $s_c z_c$, class-balanced, $s$ alone trained", ("test_posthoc", _STAGES)),
    "mislas": (r"ce-mixup; then las of $s_c z_c$, class-balanced", ("test_posthoc", _STAGES)),
}


def table() -> str:
    """The table as Markdown."""
    recipes: dict[str, set[str]] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        settings = read_settings(path)
        recipes.setdefault(str(settings["data"]), set()).update(_named(path.stem, settings))
    return markdown(HEADER, (_line(name, method, recipes) for name, method in BASE_METHODS.items()))


def _line(name: str, method: Method, recipes: Mapping[str, set[str]]) -> list[str]:
    form, tests = FORMS.get(name) or (form_of(loss_of(method)), (_LOSSES,))
    options = {**method.defaults, **(DEFERRED_DEFAULTS if method.deferred else {})}
    options |= ANNEALING_DEFAULTS if method.annealed else {}
    options = {**(STAGE_DEFAULTS if method.second else {}), **options}
    where = ", ".join(data for data, named in recipes.items() if name in named)
    shown = ", ".join(f"`{key}` {_text(value)}" for key, value in options.items())
    return [f"`{name}`", method.title, method.source, form, shown or "-", where or "any", ", ".join(tests)]


def loss_of(method: Method) -> str:
    """The class of the loss that a method trains with."""
    counts = torch.tensor([9, 4, 2])
    given = {key: value for key, value in method.defaults.items() if key not in RUN_OPTIONS}
    return type(method.loss(Setting(counts, 5, 1), given)).__name__


def form_of(loss: str) -> str:
    """What a named loss sets, in a line."""
    offset, margin, weight, gamma, smoothing, _ = NAMED[loss].cells
    letters = (("b_c", offset), (r"\phi", margin))
    said = [cell.replace("$", f"${letter} = ", 1) for letter, cell in letters if cell != "-"]
    said += ["$s$"] if of_cosine(loss) else []
    said += [] if weight == "-" or weight.startswith("given") else [weight.replace("$", "$w_c = ", 1)]
    said += [] if gamma == "-" else [r"$\gamma$"]
    said += [] if smoothing in ("-", "given") else [rf"$\varepsilon_y$ {smoothing}"]
    return ", ".join(said) or r"$b = 0$, $\phi = z$"


def missing_table() -> str:
    """The methods of published tables that are not here, as Markdown."""
    missing = methods_not_here()
    return markdown(
        ("method", "tables that have it"), ([f"`{name}`", "; ".join(missing[name])] for name in sorted(missing))
    )


def losses_table() -> str:
    """The named losses as Markdown."""
    return markdown(LOSS_HEADER, ([f"`{name}`", *loss.cells] for name, loss in NAMED.items()))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "none"


def _named(recipe: str, settings: Mapping[str, Any]) -> set[str]:
    """The methods of a recipe: the one it trains, those with options of their own, and those with published figures."""
    return {settings.get("method", ""), *(settings.get("methods") or {}), *(row.method for row in carried(recipe))}


def main(document: Path = DOCUMENT, losses: Path = LOSSES) -> int:
    """Write the marked sections of each document."""
    ours = ((document, "methods", table()), (document, "missing", missing_table()))
    for path, name, made in (*ours, (losses, "losses", losses_table())):
        path.write_text(section(path.read_text(encoding="utf-8"), name, made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
