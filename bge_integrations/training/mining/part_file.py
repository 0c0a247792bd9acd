"""Keeps the results of rows while data are mined, so that an interrupted run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from typing_extensions import Self

from bge_integrations.errors import SettingsError
from bge_integrations.training.mining.choice import RowResult

__all__ = ["PartFile"]

_HEAD = '{"key": "'


class PartFile:
    """A JSONL file: a key on the first line, and the result of a row on each other line.

    The results of another key are not read. The next result replaces them.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """Reads what is there.

        Args:
            path: The file; `None`: nothing is kept.
            key: A name for all that the results depend on.

        Raises:
            SettingsError: The file was not written by this class, so that it must not be replaced.
            OSError: The file can't be read or written.
        """
        self.results: dict[int, RowResult] = {}
        self._file = None
        if path is None:
            return
        head = json.dumps({"key": key})
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if lines and not lines[0].startswith(_HEAD):
            raise SettingsError(f"part={os.fspath(path)!r} is a file of another kind. Name another file, or remove it.")
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    found = RowResult.from_dict(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    break  # the line that was written when the run ended
                self.results[found.row] = found
        # Written again, without a half line at the end.
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text("\n".join([head, *map(_line, self.results.values())]) + "\n", encoding="utf-8")
        unfinished.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, results: Iterable[RowResult]) -> None:
        """Keeps results, and writes each at once."""
        for result in results:
            self.results[result.row] = result
            if self._file is not None:
                self._file.write(_line(result) + "\n")
                self._file.flush()

    def __enter__(self) -> Self:
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            self._file.close()


def _line(result: RowResult) -> str:
    return json.dumps(result.to_dict())
