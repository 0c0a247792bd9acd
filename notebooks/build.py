"""Runs the notebooks again, in place, and writes them so that equal content gives equal files.

    python notebooks/build.py                        all of them
    python notebooks/build.py migrating              one
    python notebooks/build.py --to DIR migrating     the result goes to DIR, the notebook stays as it is

The notebooks themselves are the source; nothing is kept anywhere else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent
SECONDS_PER_CELL = 300

ENVIRONMENT = {
    # Progress bars, and the remark that they could be prettier, belong on a screen and not in a file.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    # Threads wait asleep, which took about half the time on cores that were busy with other work as well.
    "OMP_WAIT_POLICY": "PASSIVE",
}

# What editors and kernels add here differs from machine to machine and says nothing about the content.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the notebooks named on the command line.

    Returns:
        The exit status: 1 if a cell of any of them failed, with its traceback on stderr.
    """
    parser = argparse.ArgumentParser(description="Run the notebooks again, in place.")
    parser.add_argument("names", nargs="*", help="notebooks without their suffix; all if none is given")
    parser.add_argument("--from", type=Path, default=NOTEBOOKS, dest="source", help="folder of the notebooks")
    parser.add_argument("--to", type=Path, help="folder for the results; else they are written in place")
    options = parser.parse_args(arguments)
    paths = [options.source / f"{Path(name).stem}.ipynb" for name in options.names]
    paths = paths or sorted(options.source.glob("*.ipynb"))
    if missing := [path.name for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    failed = False
    for path in paths:
        start = time.perf_counter()
        try:
            nbformat.write(execute(path), (options.to or path.parent) / path.name)  # type: ignore[no-untyped-call]
        except CellExecutionError as error:
            failed = True
            sys.stderr.write(f"{path.name}: {error}\n")
        else:
            sys.stdout.write(f"{path.name}: {time.perf_counter() - start:.0f} s\n")
    return int(failed)


def execute(path: Path) -> NotebookNode:
    """Runs a notebook in a fresh kernel of the running interpreter, against the package of this checkout.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    # Without folders to look in, the manager offers the one kernel that ipykernel brings: that of this interpreter.
    kernels = KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels),
        timeout=SECONDS_PER_CELL,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    python_path = os.pathsep.join(filter(None, [str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, **ENVIRONMENT, "PYTHONPATH": python_path})
    return normalized(notebook)


def normalized(notebook: NotebookNode) -> NotebookNode:
    """Drops from a notebook what changes from run to run: versions and what editors leave on cells."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        cell.source = cell.source.rstrip()
    nbformat.validate(notebook)
    return notebook


if __name__ == "__main__":
    raise SystemExit(main())
