"""Keeps the answers of a chat model by their content, so that no answer is paid for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from typing_extensions import Self

from bge_integrations.errors import SettingsError

__all__ = ["AnswerStore", "Kept"]

_HEAD = '{"format": "answers of a chat model", "version": 1}'


@dataclass(frozen=True)
class Kept:
    """What came of the calls for a prompt.

    Attributes:
        items: Kinds and questions of each answer that could be read, in the order of the answers.
        faults: What was wrong with the other answers.
        malformed: What was wrong with items of answers that could be read.
    """

    items: list[Sequence[tuple[str, str]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


class AnswerStore:
    """A JSONL file with an answer a line, each under a key of its own.

    Lines are only added, and what is there stays. So answers to other prompts are kept too, and a line that was not
    finished when a process was killed costs one answer.
    """

    def __init__(self, path: Path | None) -> None:
        """Reads what is there.

        Raises:
            SettingsError: The file was not written by this class, so that it must not be changed.
            OSError: The file can't be read or written.
        """
        self._path = path
        self._file: IO[str] | None = None
        self.kept: dict[str, Kept] = {}
        if path is None or not path.exists():
            return
        head, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        if head != _HEAD and not (not lines and _HEAD.startswith(head)):
            raise SettingsError(f"part={os.fspath(path)!r} is a file of another kind. Name another file, or remove it.")
        self.kept.update(row for row in map(_read, lines) if row is not None)

    def add(self, key: str, kept: Kept) -> None:
        """Keeps an answer, and writes it at once."""
        self.kept[key] = kept
        if self._file is not None:
            self._file.write(json.dumps({"key": key, **asdict(kept)}) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        """Opens the file to write to."""
        if self._path is not None:
            content = self._path.read_bytes() if self._path.exists() else b""
            if b"\n" not in content:  # not there, or killed in the first line
                self._path.write_text(f"{_HEAD}\n", encoding="utf-8")
                content = b"\n"
            self._file = self._path.open("a", encoding="utf-8")
            if not content.endswith(b"\n"):
                self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(line: str) -> tuple[str, Kept] | None:
    """Returns the key and the content of a line, or `None` for one that was not finished when a process ended."""
    try:
        row = json.loads(line)
        items: list[Sequence[tuple[str, str]]] = [
            tuple((str(kind), str(query)) for kind, query in answer) for answer in row["items"]
        ]
        return str(row["key"]), Kept(items, list(map(str, row["faults"])), list(map(str, row["malformed"])))
    except (ValueError, TypeError, KeyError):
        return None
