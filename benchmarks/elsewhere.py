"""Contenders whose packages can't stand beside this package's: each runs in a process of another Python.

`at_home` finds out which ones do. Loading one starts its process, in which `python -m benchmarks.elsewhere` imports
only what the contender needs. Texts go in and vectors come out over pipes, as bytes. The process ends when the pipe
does: nothing holds the contender any more, or its parent has ended in whatever way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Contender, by_name
from benchmarks.entrants import ElsewhereError, Loaded, Place
from benchmarks.fresh import REPOSITORY, command, environment, last_line
from benchmarks.machine import installed

_DOCUMENTS, _QUERY = b"d", b"q"
_REQUEST = struct.Struct("<cI")
"""What is wanted, and how many texts follow."""
_LENGTH = struct.Struct("<I")
"""Bytes of a text, which follow."""
_ANSWER = struct.Struct("<?dII")
"""Whether it is vectors, the seconds that they took, rows and columns of float32; or 0, 0, 1 and bytes of a message."""

_PATIENCE = 10
"""Seconds that a process may take to end before it is killed."""


def versions(python: Path, packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the versions of some distributions in another Python.

    Raises:
        ValueError: It can't be started, or fails.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            finished = subprocess.run(
                [*command(python, "elsewhere"), "--versions", *packages],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=REPOSITORY,
                env=environment(python),
                check=False,
            )
        except OSError as error:
            raise ValueError(f"the Python {python} can't be started: {error.strerror}") from error
        if finished.returncode:
            raise ValueError(f"the Python {python} can't be used: {last_line(errors, finished.returncode)}")
    found: dict[str, str | None] = json.loads(finished.stdout)
    return found


def at_home(contenders: Sequence[Contender], pythons: Sequence[Path]) -> list[Contender]:
    """Returns the contenders, each with the Python that has what it needs.

    Args:
        contenders: Who wants to take part.
        pythons: Other Pythons. The first that has a contender's package runs it, unless this one has it too.

    Raises:
        ValueError: One of them can't be used.
    """
    needed = {contender.needs for contender in contenders if contender.needs}
    found = {python: versions(python, needed) for python in pythons}
    placed = []
    for contender in contenders:
        home = next((python for python, packages in found.items() if packages.get(contender.needs)), None)
        if not contender.needs or installed(contender.needs):
            placed.append(contender)
        elif home:
            placed.append(replace(contender, python=home, load=partial(start, home, contender)))
        else:
            placed.append(replace(contender, load=partial(_miss, contender.needs)))
    return placed


def _miss(package: str, _: Place) -> Loaded:
    raise ModuleNotFoundError(f"it needs {package}: see --peers-python")


def start(python: Path, contender: Contender, place: Place) -> Loaded:
    """Starts a contender in a process of another Python.

    Raises:
        ElsewhereError: It can't be loaded there.
    """
    if contender.prepare:
        contender.prepare(place)
    process = _Process(python, contender.name, place)
    return Loaded(
        partial(process.ask, _DOCUMENTS), lambda text: process.ask(_QUERY, [text])[0], hand_over=process.hand_over
    )


class _Process:
    """The near end of the pipes."""

    def __init__(self, python: Path, name: str, place: Place) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        self._process = subprocess.Popen(
            [
                *command(python, "elsewhere"),
                name,
                "--model",
                str(place.model.resolve()),
                "--workdir",
                str(place.workdir.resolve()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=REPOSITORY,
            env=environment(python),
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        weakref.finalize(self, _end, self._process, self._errors)
        self._lock = threading.Lock()
        self._waits: dict[bytes, list[tuple[float, float]]] = {_DOCUMENTS: [], _QUERY: []}
        self._answer()

    def ask(self, kind: bytes, texts: list[str]) -> NDArray[np.float32]:
        """Returns a row for each text, shape [texts, dimensions]."""
        begin = time.perf_counter()
        encoded = [text.encode() for text in texts]
        parts = [part for text in encoded for part in (_LENGTH.pack(len(text)), text)]
        with self._lock:
            try:
                self._requests.write(_REQUEST.pack(kind, len(texts)) + b"".join(parts))
                self._requests.flush()
            except OSError:
                self._fail()
            vectors, seconds = self._answer()
            self._waits[kind].append((time.perf_counter() - begin, seconds))
        return vectors

    def hand_over(self) -> dict[str, float]:
        """Returns what the pipes have cost: `query_ms`, the median, and `part_of_documents`, of the time of those."""
        queries = [waited - seconds for waited, seconds in self._waits[_QUERY]]
        waited, worked = (sum(times) for times in zip(*self._waits[_DOCUMENTS], strict=True))
        return {"query_ms": 1000 * statistics.median(queries), "part_of_documents": 1 - worked / waited}

    def _answer(self) -> tuple[NDArray[np.float32], float]:
        head = self._answers.read(_ANSWER.size)
        if len(head) < _ANSWER.size:
            self._fail()
        is_vectors, seconds, rows, columns = _ANSWER.unpack(head)
        size = rows * columns * (4 if is_vectors else 1)
        body = self._answers.read(size)
        if len(body) < size:
            self._fail()
        if not is_vectors:
            raise ElsewhereError(body.decode())
        return np.frombuffer(body, np.float32).reshape(rows, columns), seconds

    def _fail(self) -> NoReturn:
        """Raises an error with what the process wrote last."""
        raise ElsewhereError(last_line(self._errors, self._process.wait(_PATIENCE)))


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


def main() -> None:
    """Loads a contender and embeds what comes in, until nothing comes any more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="CONTENDER")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--versions", nargs="+", metavar="PACKAGE", help="print their versions as JSON, nothing else")
    options = parser.parse_args()
    if options.versions:
        sys.stdout.write(json.dumps({package: installed(package) for package in options.versions}))
        return
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    _serve(options.name, Place(options.model, options.workdir), sys.stdin.buffer, answers)


def _serve(name: str, place: Place, requests: IO[bytes], answers: IO[bytes]) -> None:
    loaded: Loaded | None = None

    def work(kind: bytes, texts: list[str]) -> tuple[NDArray[np.float32], float]:
        nonlocal loaded
        begin = time.perf_counter()
        if loaded is None:
            loaded = by_name(name).load(place)
            return np.empty((0, 0), np.float32), time.perf_counter() - begin
        vectors = loaded.documents(texts) if kind == _DOCUMENTS else [loaded.query(text) for text in texts]
        seconds = time.perf_counter() - begin
        return np.asarray(vectors, np.float32).reshape(len(texts), -1), seconds

    kind, texts = _QUERY, [""]
    while True:
        try:
            vectors, seconds = work(kind, texts)
            answers.write(_ANSWER.pack(True, seconds, *vectors.shape) + vectors.tobytes())
        except Exception as error:  # whatever a library raises is for the parent to say
            message = f"{type(error).__name__}: {' '.join(str(error).split())}".encode()
            answers.write(_ANSWER.pack(False, 0, 1, len(message)) + message)
        answers.flush()
        head = requests.read(_REQUEST.size)
        if len(head) < _REQUEST.size:
            return
        kind, count = _REQUEST.unpack(head)
        texts = [requests.read(*_LENGTH.unpack(requests.read(_LENGTH.size))).decode() for _ in range(count)]


if __name__ == "__main__":
    main()
