"""Runs contenders in a process of their own: how long until the first vector, and how much memory.

`run` starts the process; `python -m benchmarks.fresh` is what runs in it, and imports nothing but what they need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.contenders import by_name
from benchmarks.entrants import ElsewhereError, Loaded, Place

REPOSITORY = Path(__file__).resolve().parents[1]

_FIRST_VECTOR = "first-vector"
_QUERY = "how do I copy a whole directory tree?"
_DOCUMENT = "Recursively copy an entire directory tree rooted at the source to a directory and return the destination. "


@dataclass(frozen=True)
class FreshRun:
    """What a process needed.

    Attributes:
        seconds: From its start until every contender in it had given a vector.
        rss_mib: Resident memory at the end.
        peak_mib: The most that it ever was.
    """

    seconds: float
    rss_mib: float
    peak_mib: float


def command(python: Path | str, module: str) -> list[str]:
    """Returns the start of a command that runs a module of these benchmarks in any Python."""
    return [str(python), "-W", "ignore", "-m", f"benchmarks.{module}"]


def environment(python: Path | None) -> dict[str, str]:
    """Returns the environment for it: in another Python, only this repository is found besides what is installed."""
    return {**os.environ, **({"PYTHONPATH": str(REPOSITORY)} if python else {})}


def last_line(file: IO[bytes], status: int) -> str:
    """Returns the last line of what a process wrote, or how it ended."""
    file.seek(0)
    written = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return written[-1].strip() if written else f"ended with status {status}"


def run(names: Sequence[str], place: Place, *, documents: int = 0, python: Path | None = None) -> FreshRun:
    """Starts a process with some contenders.

    Args:
        names: The contenders that it holds together.
        place: Where the model is.
        documents: Texts that each embeds besides the one query, for the memory that real use takes.
        python: The Python that runs it; None is this one.

    Raises:
        ElsewhereError: A contender failed; the message is the last line that the process wrote.
    """
    words = [*command(python or sys.executable, "fresh"), *names, "--documents", str(documents)]
    words += ["--model", str(place.model.resolve()), "--workdir", str(place.workdir.resolve())]
    words += ["--device", place.device]
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY, env=environment(python)
        ) as process:
            seconds, last = None, ""
            for line in process.stdout or ():  # libraries may write lines of their own before ours
                if line.strip() == _FIRST_VECTOR:
                    seconds = time.perf_counter() - start
                last = line
        if process.returncode or seconds is None:
            raise ElsewhereError(last_line(errors, process.returncode))
    return FreshRun(seconds, **json.loads(last))


def main() -> None:
    """Loads the contenders, embeds, and tells the process that started this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="CONTENDER")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    place = Place(options.model, options.workdir, options.device)
    held: list[Loaded] = []
    for name in options.names:
        held.append(by_name(name).load(place))
        held[-1].query(_QUERY)
    sys.stdout.write(f"\n{_FIRST_VECTOR}\n")
    sys.stdout.flush()
    if options.documents:
        for loaded in held:
            loaded.documents([f"{number}: {_DOCUMENT}" for number in range(options.documents)])
    sys.stdout.write(f"\n{json.dumps(memory_mib())}\n")


def memory_mib() -> dict[str, float]:
    """Returns the resident memory of this process as `rss_mib`, and the most that it ever was as `peak_mib`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _memory_without_proc()
    # Not getrusage's maximum: a process inherits that from the one that starts it, which may hold far more.
    kib = {name: int(value) for name, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE)}
    return {"rss_mib": kib["VmRSS"] / 1024, "peak_mib": kib["VmHWM"] / 1024}


def own_memory_mib() -> float:
    """Returns the memory of this process without the pages of mapped files, which the system can take back."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _memory_without_proc()["rss_mib"]
    return int(re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024


def _memory_without_proc() -> dict[str, float]:
    import psutil

    rss = psutil.Process().memory_info().rss
    peak = rss
    if sys.platform == "darwin":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rss_mib": rss / 2**20, "peak_mib": peak / 2**20}


if __name__ == "__main__":
    main()
