"""Reads a file or folder of passages, to search in or to pre-train on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bge_integrations.errors import TrainingDataError
from bge_integrations.evaluation.formats import json_lines, plain_or_zipped, read_errors_as, text_lines
from bge_integrations.texts import is_text
from bge_integrations.training.rows.data import text_fault

__all__ = ["load_passages", "read_passages"]


def load_passages(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, set[str]]]:
    """Reads passages.

    | format | files |
    |---|---|
    | JSON lines | a .jsonl file: `text`, and perhaps `title` and `document`, the id of the passage's document |
    | BEIR, FlagEmbedding | a folder with such a file by the name corpus.jsonl |
    | plain text | a .txt file: one passage a line |

    Files may end in .gz. As in BEIR, a passage is its title, a blank and its text. Passages without text are left out.

    Returns:
        The passages, and the ids of the documents that a passage is from by its text.

    Raises:
        TrainingDataError: The format is unknown, or a passage is no text; the file, the line and the field are named.
    """
    place = Path(os.path.expanduser(path))
    texts: list[str] = []
    documents: dict[str, set[str]] = {}
    with read_errors_as(TrainingDataError):
        for text, document in _passages(place):
            texts.append(text)
            if document is not None:
                documents.setdefault(text, set()).add(document)
    if not texts:
        raise TrainingDataError(f"{place} has no passages.")
    return texts, documents


def _passages(place: Path) -> Iterator[tuple[str, str | None]]:
    if place.is_dir():
        file = plain_or_zipped(place / "corpus.jsonl")
        if file is None:
            raise TrainingDataError(f"{place} has no corpus.jsonl. Give a file with passages, or a BEIR folder.")
    elif place.is_file():
        file = place
    else:
        raise TrainingDataError(f"There is no file or folder {place}. Give the path of passages.")
    return read_passages(file)


def read_passages(file: Path) -> Iterator[tuple[str, str | None]]:
    """Yields the passages of a .jsonl or .txt file, as `load_passages` reads them, with the id of their document.

    Raises:
        TrainingDataError: The format is unknown, or a passage is no text; the file, the line and the field are named.
        EvaluationDataError: The file can't be read, or a line is no JSON object.
    """
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _from_json(file)
    elif file.name.endswith((".txt", ".txt.gz")):
        lines = (" ".join(line.split()) for line in text_lines(file))
        yield from ((line, None) for line in lines if line)
    else:
        raise TrainingDataError(
            f"{file} is of no known format. Give a .jsonl file with a text a line, a .txt file with a passage a line, "
            "or a BEIR folder."
        )


def _from_json(file: Path) -> Iterator[tuple[str, str | None]]:
    for place, row in json_lines(file):
        for key in ("title", "text"):
            value = row.get(key, "" if key == "title" else None)
            fault = text_fault(value)
            if fault and (not is_text(value) or value.strip()):
                raise TrainingDataError(f"{place}: {key} {fault}")
        text = f"{row.get('title', '')} {row['text']}".strip()
        document = row.get("document")
        if not (
            document is None or is_text(document) or (isinstance(document, int) and not isinstance(document, bool))
        ):
            raise TrainingDataError(f"{place}: document is {document!r}; write a text or a whole number.")
        if text:
            yield text, None if document is None else str(document)
