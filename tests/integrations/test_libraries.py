"""A library that is missing is named, with what to install."""

from __future__ import annotations

import pytest

from lt_kernels.integrations.libraries import library


def test_a_library_is_returned():
    assert library("json.decoder").JSONDecoder


def test_a_missing_library_names_its_extra():
    with pytest.raises(ImportError, match=r"no_such_library is not installed.*'lt-kernels\[vision\]'"):
        library("no_such_library.part", extra="vision")
