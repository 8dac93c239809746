"""What the tests of the kernels' internals share."""

from __future__ import annotations

import pytest
from whitebox import build


@pytest.fixture(scope="session")
def box(pytestconfig, tmp_path_factory):
    """The internals, compiled once for all workers."""
    return build.for_tests(pytestconfig, tmp_path_factory)
