"""Reads documents from files: passages as they are, or texts that are cut into passages."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bge_integrations.corpus.source import TEXT_ENDINGS, text_files
from bge_integrations.corpus.splitters import Cut, cut_by_characters
from bge_integrations.errors import EvaluationDataError, SettingsError, TrainingDataError
from bge_integrations.evaluation.formats import json_lines, plain_or_zipped, read_errors_as
from bge_integrations.texts import is_text, shortened
from bge_integrations.training.queries.documents import Passage, hashed, read_passages
from bge_integrations.training.rows.passages import load_passages

__all__ = ["load_documents", "save_passages"]

_PAGE_CONTENT = "page_content"


def load_documents(path: str | os.PathLike[str], characters: int = 1000) -> list[Passage]:
    """Reads documents as passages.

    | format | files |
    |---|---|
    | passages | as for `bge mine --corpus`: a .jsonl file, a .txt file with a passage a line, a BEIR folder |
    | LangChain | a .jsonl file with `page_content`, `metadata` and `id`: a line is a `Document.model_dump_json()` |
    | texts | a folder with .txt and .md files, and folders of them; each file is a document |

    Texts are cut by langchain-text-splitters, or by LlamaIndex's `SentenceSplitter` where only this is installed.

    Args:
        path: The file or folder.
        characters: Characters of a passage that is cut from a text, at most.

    Raises:
        TrainingDataError: The format is unknown, or something in it is wrong; the file and the place are named.
        SettingsError: `characters` is below 1.
        MissingExtraError: Texts have to be cut, and neither package is installed.
    """
    if characters < 1:
        raise SettingsError(f"characters={characters} must be 1 or more.")
    place = Path(os.path.expanduser(path))
    if place.is_dir() and not plain_or_zipped(place / "corpus.jsonl"):
        return _from_texts(place, characters)
    if place.is_file() and _PAGE_CONTENT in next(iter(_rows(place)), {}):
        return _from_langchain(place)
    texts, documents = load_passages(place)
    return [
        Passage(text, hashed(text)[:16], min(documents[text]) if text in documents else None)
        for text in dict.fromkeys(texts)
    ]


def save_passages(passages: Sequence[Passage], file: Path) -> None:
    """Writes passages as `bge mine --corpus` and `load_documents` read them.

    Args:
        passages: The passages.
        file: A .jsonl file. One that is there is replaced.
    """
    rows = (
        {"_id": one.id, "text": one.text, **({} if one.document is None else {"document": one.document})}
        for one in passages
    )
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of a .jsonl file; none of another file, whose own reader says what is wrong."""
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        with contextlib.suppress(EvaluationDataError):
            yield from (row for _, row in json_lines(file))


def _from_langchain(file: Path) -> list[Passage]:
    found = []
    with read_errors_as(TrainingDataError):
        for place, row in json_lines(file):
            text = row.get(_PAGE_CONTENT)
            if not is_text(text):
                raise TrainingDataError(f"{place}: {_PAGE_CONTENT} is {shortened(text)}; write a text.")
            found.append(SimpleNamespace(page_content=text, metadata=row.get("metadata") or {}, id=row.get("id")))
    return list(read_passages(found).all)


def _from_texts(folder: Path, characters: int) -> list[Passage]:
    files = text_files(folder)
    if not files:
        raise TrainingDataError(
            f"{folder} has no corpus.jsonl and no files that end with {', '.join(TEXT_ENDINGS)}. Give a file with "
            "passages, a BEIR folder, or a folder of texts."
        )
    cuts: dict[str, Cut] = {}
    found: dict[str, Passage] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise TrainingDataError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}.") from error
        except OSError as error:
            raise TrainingDataError(f"{file} can't be read: {error.strerror or error}.") from error
        if file.suffix not in cuts:
            cuts[file.suffix] = cut_by_characters(characters, file)
        for part in cuts[file.suffix](text):
            if part.strip():
                document = file.relative_to(folder).as_posix()
                found.setdefault(part.strip(), Passage(part.strip(), hashed(part.strip())[:16], document))
    if not found:
        raise TrainingDataError(f"The files in {folder} have no text.")
    return list(found.values())
