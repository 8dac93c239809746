"""What every test runs under: two threads, fixed seeds, new memory full of NaN, and each wing of kernels in turn."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from tests.nursery import Nursery

# Before torch starts its threads: several processes of tests share the cores, and threads that spin while they wait for
# work take them from the others (the tests take less than half of the time so). What is computed is the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():  # before anything imports triton: without a GPU its kernels run interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")
# torch keeps compiled graphs by the names of their operators: those of another state of the package must not serve.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")


def pytest_collection(session: pytest.Session) -> None:
    """Tests are collected without looking for garbage, of which there is none."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Python looks for garbage among what the tests make, and no more among the tests themselves, which are many."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """Seeds, threads, and NaN in every torch.empty: a kernel that forgets an element cannot pass by luck."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    # Without a GPU, torch.manual_seed notes the stack for one that may come, which takes longer than many tests.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for `kernels` runs on both wings; AS_SHIPPED in the module adds neither."""
    if "kernels" in metafunc.fixturenames:
        shipped = ["as shipped"] if getattr(metafunc.module, "AS_SHIPPED", False) else []
        metafunc.parametrize("kernels", ["reference", "compiled", *shipped], indirect=True)


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on the plain torch kernels, on the C++ ones, or on whatever a user gets for these sizes."""
    if request.param == "as shipped":
        yield request.param
        return
    from lt_kernels.ops import use_kernels

    try:
        wing = use_kernels(request.param)
        wing.__enter__()
    except (RuntimeError, ImportError) as problem:
        if request.param == "reference":
            raise
        pytest.skip(f"the C++ extension is not built: {problem}")
    try:
        yield request.param
    finally:
        wing.__exit__(None, None, None)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where commands and scripts are forked; one for all tests of a process."""
    for name in ("lightning", "sklearn", "tensorboard", "matplotlib"):
        pytest.importorskip(name, reason="the extra [train] is not installed")
    made = Nursery(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()
