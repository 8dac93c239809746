"""Class counts by key: a mapping or a labelled vector is read in the order of the classes, whatever order it has."""

from __future__ import annotations

from collections import Counter, OrderedDict, UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.registry import NAMED, made, takes
from lt_kernels import functional, losses, metrics, posthoc, priors, regularizers, schedules
from lt_kernels.data.profiles import choose
from lt_kernels.data.shift import shifted_counts

COUNTS = [3, 5, 2]
LOGITS, TARGET, LABELS = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 2, 2])


class Series:
    """A vector with labels, as pandas' Series: by its own order at [i] of a position, and items() with the labels."""

    def __init__(self, labels: list[Any], values: list[float]) -> None:
        self.index, self.values = np.array(labels), np.array(values)

    def items(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.index, self.values, strict=True)

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, place: int) -> Any:
        return self.values[place]


def call(loss: Callable[..., Tensor]) -> Tensor:
    return loss(LOGITS, TARGET)


COUNTED = [name for name in NAMED if takes(name, "class_counts")]
TAKES: dict[str, Callable[[Any], Any]] = {
    "log_prior": priors.log_prior,
    "class_balanced_weight": priors.class_balanced_weight,
    "ldam_margin": priors.ldam_margin,
    "dbm_margin": priors.dbm_margin,
    "label_aware_smoothing": lambda counts: priors.label_aware_smoothing(counts, 0.3, 0.0),
    "LDAM": lambda counts: functional.LDAM(counts).per_class,
    "DBM": lambda counts: functional.DBM(counts).per_class,
    "lade_regularizer": lambda counts: functional.lade_regularizer(LOGITS, TARGET, counts),
    "LADERegularizer": lambda counts: call(regularizers.LADERegularizer(counts)),
    "DeferredReweighting": lambda counts: schedules.DeferredReweighting(counts, 0)(0),
    **{name: lambda counts, name=name: call(made(name, counts)) for name in COUNTED},
    "GMLLoss": lambda counts: losses.GMLLoss(losses.CrossEntropyLoss(), counts).log_prior,
    "NCLLoss": lambda counts: losses.NCLLoss(counts, hard_categories=2)(LOGITS[None], TARGET),
    "logit_adjustment": lambda counts: posthoc.logit_adjustment(LOGITS, counts),
    "pc_softmax": lambda counts: posthoc.pc_softmax(LOGITS, counts, counts),
    "rescale_by_count": lambda counts: posthoc.rescale_by_count(LOGITS.T, counts),
    "group_accuracy": lambda counts: metrics.group_accuracy([0.1, 0.6, 0.3], counts, many=4, few=3, test_counts=counts),
    "balanced_accuracy": lambda counts: metrics.balanced_accuracy({c: 1 / int(n) for c, n in items(counts)}),
    "false positives": lambda counts: metrics.cumulative_false_positives(TARGET.flip(0), TARGET, counts),
    "shifted_counts": lambda counts: shifted_counts(counts, 10, 2.0),
    "choose": lambda counts: choose(LABELS, counts),
}


def items(counts: Any) -> list[tuple[Any, Any]]:
    return list(counts.items()) if hasattr(counts, "items") else list(enumerate(counts))


KEYED: dict[str, Callable[[list[int]], Any]] = {
    "dict": lambda counts: {c: counts[c] for c in (1, 0, 2)},
    "Counter": lambda counts: Counter([c for c in (1, 2, 0) for _ in range(counts[c])]),
    "OrderedDict": lambda counts: OrderedDict((c, counts[c]) for c in (2, 0, 1)),
    "UserDict": lambda counts: UserDict({c: counts[c] for c in (2, 0, 1)}),
    "dict of numpy's": lambda counts: {np.int64(c): np.int32(counts[c]) for c in (1, 0, 2)},
    "series": lambda counts: Series([1, 0, 2], [counts[c] for c in (1, 0, 2)]),
}
ORDERED: dict[str, Callable[[list[int]], Any]] = {
    "tuple": tuple,
    "array": np.array,
    "reversed array": lambda counts: np.array(counts[::-1])[::-1],
    "every other": lambda counts: np.array([c for c in counts for _ in range(2)])[::2],
    "array of float16": lambda counts: np.array(counts, dtype=np.float16),
    "numbers of numpy": lambda counts: [np.int64(c) for c in counts],
    "numbers of torch": lambda counts: [torch.tensor(c) for c in counts],
    "int32": lambda counts: torch.tensor(counts, dtype=torch.int32),
    "strided": lambda counts: torch.tensor([counts, counts]).T[:, 1],
}


def same(found: Any, expected: Any) -> bool:
    return torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected


@pytest.mark.parametrize("kind", [*KEYED, *ORDERED])
@pytest.mark.parametrize("name", TAKES)
def test_counts_are_those_of_the_classes(name: str, kind: str) -> None:
    if (name, kind) == ("choose", "array of float16"):
        pytest.skip("a number of samples to choose is an integer")
    given = {**KEYED, **ORDERED}[kind](COUNTS)
    assert same(TAKES[name](given), TAKES[name](COUNTS))


def test_value_counts_of_pandas() -> None:
    """Most frequent first, as it comes: the prior of class 0 is still that of class 0."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    counts = pandas.Series(LABELS.numpy()).value_counts()
    assert counts.index.tolist() == [1, 0, 2]
    for frame in (counts, counts.sort_index(), counts.astype(float), pandas.Series(COUNTS)):
        assert priors.log_prior(frame).exp().tolist() == pytest.approx([0.3, 0.5, 0.2])
    with pytest.raises(ValueError, match="class_counts must have a key for every class 0 to 3, got none for class 0"):
        priors.log_prior(pandas.Series(LABELS.numpy() + 1).value_counts())
    with pytest.raises(ValueError, match="class_counts must have the classes 0 to C - 1 as keys, got 'cat'"):
        priors.log_prior(pandas.Series(["cat", "dog", "cat"]).value_counts())


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("given", [COUNTS, tuple(COUNTS), {1: 5, 0: 3, 2: 2}, torch.tensor(COUNTS)], ids=repr)
def test_counts_within_a_compiled_graph(given: Any) -> None:
    def call(logits: Tensor) -> Tensor:
        return functional.lade_regularizer(logits, TARGET, given) + priors.log_prior(given).sum()

    found = torch.compile(call, backend="eager", fullgraph=True)(LOGITS)
    assert float(found) == pytest.approx(float(call(LOGITS)), rel=1e-5)


def test_a_literal_prior() -> None:
    assert priors.log_prior({1: 5, 0: 3, 2: 2}).exp().tolist() == pytest.approx([0.3, 0.5, 0.2])
    assert priors.log_prior(Counter(LABELS.tolist())).exp().tolist() == pytest.approx([0.3, 0.5, 0.2])
    assert posthoc.pc_softmax(torch.zeros(2), {1: 1, 0: 3}).tolist() == pytest.approx([0.25, 0.75])
    assert metrics.balanced_accuracy({1: 0.5, 0: 1.0}) == 0.75


BAD: list[tuple[str, Any]] = [
    ("must have a key for every class 0 to 2, got none for class 1", {0: 3, 2: 5}),
    ("must have a key for every class 0 to 3, got none for class 0", {1: 3, 2: 5, 3: 1}),
    ("must have the classes 0 to C - 1 as keys, got -1", {0: 3, -1: 5}),
    ("must have the classes 0 to C - 1 as keys, got 'a'", {0: 3, "a": 5}),
    ("must have the classes 0 to C - 1 as keys, got True", {0: 3, True: 5}),
    ("must have the classes 0 to C - 1 as keys, got 0.5", {0.5: 3, 1: 5}),
    (r"must have the classes 0 to C - 1 as keys, got \(0, 1\)", {(0, 1): 3}),
    ("must have each class once as a key, got .*0.* twice", Series([0, 0], [1, 2])),
    ("must be 1-D", {}),
    ("must be finite and >= 0, got -5.0 for class 1", {1: -5, 0: 3}),
]


@pytest.mark.parametrize("message, counts", BAD)
@pytest.mark.parametrize("make", [losses.BalancedSoftmaxLoss, losses.LADELoss, priors.log_prior, functional.LDAM])
def test_what_is_missing_or_foreign_is_named(make: Callable[[Any], Any], message: str, counts: Any) -> None:
    with pytest.raises(ValueError, match=f"class_counts {message}"):
        make(counts)


@pytest.mark.parametrize("counts", ["many", [None, 1], [[1], [2, 3]], [1j, 2], [True, False], {0: "a"}, object(), 3j])
def test_what_is_no_count_is_named(counts: Any) -> None:
    with pytest.raises(TypeError, match="class_counts must be"):
        priors.log_prior(counts)


def test_counts_beyond_float32() -> None:
    """Python's numbers are float64: 2^24 + 1 is a count."""
    assert functional.LDAM([2.0**24 + 1, 1.0]).class_counts.tolist() == [2**24 + 1, 1]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert priors.log_prior([70_000.0, 70_000.0]).exp().tolist() == pytest.approx([0.5, 0.5])
    finally:
        torch.set_default_dtype(before)


def test_other_names_are_said() -> None:
    with pytest.raises(ValueError, match="source_counts must have a key for every class 0 to 2, got none for class 1"):
        posthoc.pc_softmax(LOGITS, {0: 1, 2: 1})
    with pytest.raises(ValueError, match="target_prior must have the classes"):
        posthoc.pc_softmax(LOGITS, COUNTS, {"a": 1})
    with pytest.raises(ValueError, match="test_counts must have a key for every class 0 to 2, got none for class 0"):
        metrics.group_accuracy([0.1, 0.2], COUNTS[:2], test_counts={1: 2, 2: 3})
    with pytest.raises(ValueError, match="per_class must have the classes"):
        metrics.balanced_accuracy({"cat": 0.5})
    with pytest.raises(ValueError, match="counts must have a key for every class 0 to 2, got none for class 0"):
        choose(LABELS, {1: 2, 2: 1})
