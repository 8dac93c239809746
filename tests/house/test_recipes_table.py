"""The table of recipes in docs/recipes.md is what the recipes say."""

from __future__ import annotations

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")

from benchmarks.tables.recipes import DOCUMENT, OURS, table
from lt_kernels.data import READERS
from lt_kernels.train.augment.augmentations import AUGMENTATIONS
from lt_kernels.train.model.networks import NETWORKS


def test_the_document_has_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "run make readme"


def test_the_document_names_every_data_set_network_and_augmentation() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = {*READERS, *AUGMENTATIONS, *NETWORKS} - {*OURS} - {"mlp", "words", "unet"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
