"""Runs a module of stores in new processes, as `python -m MODULE COMMAND FOLDER OPTIONS…`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_integrations.errors import BgeError

ROOT = Path(__file__).parent.parent

Fill = Callable[[Path, str, dict[str, Any]], None]
Check = Callable[[Path, str, dict[str, Any]], None]


def in_new_process(module: str, command: str, folder: Path, options: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401
    """Returns what the process wrote, as plain data."""
    arguments = [sys.executable, "-m", module, command, str(folder), *map(json.dumps, options)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outcome_of(check: Callable[[], object]) -> str:
    """Returns "fits", or the error."""
    try:
        check()
    except BgeError as error:
        return f"{type(error).__name__}: {error}"
    return "fits"


def run(names: Sequence[str], fill: Fill, check: Check) -> None:
    """Is the main function of such a module: fills every store, or writes what a check says of each.

    Args:
        names: The stores.
        fill: Fills a store in a folder with vectors of a model with some options.
        check: Raises an error if the model does not fit a store.
    """
    warnings.simplefilter("ignore")
    command, folder, *given = sys.argv[1:]
    found: list[dict[str, str]] = []
    for options in map(json.loads, given):
        outcomes = {}
        for name in names:
            if command == "fill":
                fill(Path(folder), name, options)
            else:
                outcomes[name] = outcome_of(lambda name=name, options=options: check(Path(folder), name, options))  # type: ignore[misc]
        found.append(outcomes)
    sys.stdout.write(json.dumps(found))
