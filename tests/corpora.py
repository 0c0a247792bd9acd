"""Corpora for tests, and what has to be in the folders that are made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyarrow import parquet

WORDS = ("river", "stone", "engine", "garden", "violin", "ledger", "harbour", "query", "vector", "index", "Unicode ✓")


def some_texts(count: int, distinct: int | None = None) -> list[str]:
    """Returns texts of many lengths; with `distinct`, texts come again after this many."""
    numbers = (number % (distinct or count) for number in range(count))
    return [f"text {n} " + " ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, n % 7 + 2)) for n in numbers]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Returns all rows of a folder of shards, in their order."""
    return [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
