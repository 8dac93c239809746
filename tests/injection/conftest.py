"""At how many moments signals are sent, and a run that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.injection.runs import recipe
from tests.nursery import Nursery


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known only where this folder is asked for by its name, as `make inject` does."""
    parser.addoption("--moments", type=int, default=2, help="at how many moments each signal is sent")


@pytest.fixture(scope="session")
def number_of_moments(request: pytest.FixtureRequest) -> int:
    """At how many moments a signal is sent."""
    return request.config.getoption("--moments", default=2)


@pytest.fixture(scope="session")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `whole` of a run left alone, its recipe.yaml beside it, and in moments.json what happened in it."""
    root = tmp_path_factory.mktemp("undisturbed")
    words = ["train", "--config", recipe(root), "--out", root / "whole", "--quiet"]
    status, text = nursery.run(*words, before=f"moments.record({str(root / 'moments.json')!r})")
    assert status == 0, text
    return root / "whole"
