"""The tests are the same, in the same order, whatever the hash seed: processes that share them must agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import pytest_generate_tests

ROOT = Path(__file__).parent.parent


def _collected(files: Iterable[str], seed: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", *files],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_the_order_does_not_depend_on_the_hash_seed(request: pytest.FixtureRequest) -> None:
    here = [item.nodeid for item in request.session.items]  # all tests, unless only some were asked for
    files = dict.fromkeys(test.split("::")[0] for test in here)
    chosen = set(here)
    seed = 2 if os.environ.get("PYTHONHASHSEED") == "1" else 1
    assert [test for test in _collected(files, seed) if test in chosen] == here


@pytest.mark.parametrize("kind", ["set", "frozenset", "in a tuple", "in a dictionary", "in pytest.param"])
def test_a_set_in_a_parametrisation_is_refused(kind: str) -> None:
    one: object = frozenset({"a", "b"}) if kind == "frozenset" else {"a", "b"}
    values: dict[str, object] = {
        "in a tuple": [("a", one)],
        "in a dictionary": [{"a": one}],
        "in pytest.param": [pytest.param(one, id="a")],
    }
    mark = pytest.mark.parametrize("name", cast("Any", values.get(kind, one))).mark
    definition = SimpleNamespace(nodeid="tests/test_x.py::test_y", iter_markers=lambda _: [mark])
    with pytest.raises(pytest.UsageError, match="test_y is parametrised with a set"):
        pytest_generate_tests(cast("pytest.Metafunc", SimpleNamespace(definition=definition)))
