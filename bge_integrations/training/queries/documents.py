"""Documents as they are given become passages: each with the text that is embedded, an id, and its document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.texts import is_text, kind_of, plain
from bge_integrations.training.rows.data import text_fault

__all__ = ["Passage", "Passages", "hashed", "read_passages"]

_DOCUMENT_KEYS = ("document", "document_id", "doc_id", "source")
"""Names under which LangChain's metadata have the document that a passage was cut from, in this order."""

_EMBEDDED = "embed"
"""The value of LlamaIndex's `MetadataMode.EMBED`: the text with the metadata that are embedded."""


@dataclass(frozen=True)
class Passage:
    """A passage.

    Attributes:
        text: The text that is embedded and trained on.
        id: An id; no two passages have the same.
        document: The id of the document that it is cut from, if known.
    """

    text: str
    id: str
    document: str | None = None


@dataclass(frozen=True)
class Passages:
    """Different passages, in the order in which they were given.

    Attributes:
        all: The passages.
        blank: The number of documents without text, which were left out.
        repeated: The number of documents with the text of an earlier one, which were left out.
    """

    all: tuple[Passage, ...]
    blank: int = 0
    repeated: int = 0

    @property
    def corpus(self) -> dict[str, str]:
        """Texts by id."""
        return {passage.id: passage.text for passage in self.all}

    @property
    def documents(self) -> dict[str, str]:
        """The document of each passage that has one, by the passage's text."""
        return {passage.text: passage.document for passage in self.all if passage.document is not None}


def hashed(*parts: str) -> str:
    """Returns a digest of texts in their order, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode()
        digest.update(b"%d\0" % len(content) + content)
    return digest.hexdigest()


def read_passages(documents: object) -> Passages:
    """Returns the passages of some documents.

    Args:
        documents: LangChain documents, LlamaIndex nodes, `Passage` objects, texts, pairs of an id and a text, or texts
            by id. LangChain embeds `page_content`; LlamaIndex embeds the text with the metadata that are not excluded
            from embedding. So do the passages. Documents without an id get one made of their text.

    Raises:
        SettingsError: They are none of these.
        TrainingDataError: A text has a lone surrogate, an id is there twice with different texts, or there is no text.
    """
    if isinstance(documents, Mapping):
        documents = documents.items()
    if is_text(documents) or not isinstance(documents, Iterable):
        raise SettingsError(
            f"documents is {kind_of(documents)}; give a list of LangChain documents, LlamaIndex nodes or texts."
        )
    found: dict[str, Passage] = {}
    by_id: dict[str, int] = {}
    blank = repeated = 0
    for number, item in enumerate(documents):
        text, id_, document = _read(item, number)
        if not text.strip():
            blank += 1
            continue
        if fault := text_fault(text):
            raise TrainingDataError(f"documents[{number}] {fault}")
        if text in found:
            repeated += 1
            continue
        id_ = hashed(text)[:16] if id_ is None else id_
        if by_id.setdefault(id_, number) != number:
            raise TrainingDataError(
                f"documents[{number}] has the id {id_!r}, as documents[{by_id[id_]}] with another text has. Give each "
                "passage an id of its own."
            )
        found[text] = Passage(text, id_, document)
    if not found:
        raise TrainingDataError("documents has no text to make questions from.")
    return Passages(tuple(found.values()), blank, repeated)


def _read(item: Any, number: int) -> tuple[str, str | None, str | None]:  # noqa: ANN401 - no framework is imported
    """Returns the text of a document, its id and the id of the larger document that it is from."""
    if isinstance(item, Passage):
        return item.text, item.id, item.document
    if is_text(item):
        return plain(item), None, None
    if isinstance(item, tuple) and len(item) == 2 and is_text(item[1]):
        return plain(item[1]), str(item[0]), None
    if is_text(getattr(item, "page_content", None)):  # LangChain
        named = (item.metadata.get(key) for key in _DOCUMENT_KEYS)
        document = next((str(name) for name in named if name is not None), None)
        return plain(item.page_content), None if item.id is None else str(item.id), document
    item = getattr(item, "node", item)  # LlamaIndex's NodeWithScore
    if hasattr(item, "get_content") and hasattr(item, "node_id"):
        document = getattr(item, "ref_doc_id", None)
        return str(item.get_content(metadata_mode=_EMBEDDED)), str(item.node_id), document
    raise SettingsError(
        f"documents[{number}] is {kind_of(item)}; give LangChain documents, LlamaIndex nodes, texts, or pairs of an id "
        "and a text."
    )
