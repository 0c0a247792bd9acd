"""What a check needs of an index, whatever store it is in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations._optional import require
from bge_integrations.errors import FingerprintError
from bge_integrations.redaction import without_credentials

__all__ = ["Document", "Index", "chosen", "connected", "documents_of", "embedded_text", "spread"]


@dataclass(frozen=True)
class Document:
    """A document of an index.

    Attributes:
        text: The text that was embedded.
        vector: Its vector as the index holds it, float32, shape [dimension].
    """

    text: str
    vector: NDArray[np.float32]


class Index(ABC):
    """One index: a collection, a table, a folder, or an object in memory."""

    name: str
    """What it is, for messages: "the Chroma collection 'docs'"."""

    @property
    def keeps_records(self) -> bool:
        """Whether it has a place for a fingerprint now. What is only in memory has none."""
        return True

    @property
    def rescales(self) -> bool:
        """Whether the store may change the length of vectors, as for a cosine metric."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Closes what `open_index` has opened. It leaves a store alone that the user has opened."""

    @abstractmethod
    def read(self) -> str | None:
        """Returns the recorded fingerprint as JSON; `None` if there is none."""

    @abstractmethod
    def write(self, record: str) -> None:
        """Records a fingerprint, and keeps all other metadata.

        Raises:
            FingerprintError: The store can't keep it.
        """

    @abstractmethod
    def count(self) -> int:
        """Returns the number of documents; 0 for a collection that is not made yet."""

    @abstractmethod
    def sample(self, count: int) -> list[Document]:
        """Returns about so many documents, from all over the index where the store allows it.

        Documents without a text or a vector are left out.
        """


def documents_of(pairs: Iterable[tuple[object, object]]) -> list[Document]:
    """Returns documents from pairs of a text and a vector, without those that lack either."""
    return [
        Document(text, np.asarray(vector, dtype=np.float32).reshape(-1))
        for text, vector in pairs
        if isinstance(text, str) and vector is not None
    ]


class Client(Protocol):
    """What reaches a server or a file."""

    def close(self) -> None:
        """Gives back what it holds."""
        ...


SomeClient = TypeVar("SomeClient", bound=Client)


@contextmanager
def connected(connect: Callable[[str], SomeClient], location: str) -> Iterator[SomeClient]:
    """A block that looks for an index through a new client, which stays open unless the block raises.

    Args:
        connect: Makes the client.
        location: The address or the path that it is made for.

    Raises:
        FingerprintError: There is no connection, or the block raised an error of the client.
    """
    with ExitStack() as stack:
        try:
            client = connect(location)
            stack.callback(client.close)
            yield client
        except FingerprintError:
            raise
        except Exception as error:
            message = f"{location} can't be opened: {error}"
            raise FingerprintError(without_credentials(message)) from None
        stack.pop_all()


def chosen(collection: str | None, there: Sequence[str], place: str) -> str:
    """Returns the name of the collection or table to look at.

    Args:
        collection: The given name; `None`: the only one.
        there: Names that exist.
        place: Where they are, for messages.

    Raises:
        FingerprintError: There is no such collection, or there are several and no name was given.
    """
    names = ", ".join(map(repr, there)) or "none"
    if collection is None and len(there) == 1:
        return there[0]
    if collection is None:
        raise FingerprintError(f"{place} has {len(there)} collections or tables ({names}); give collection=….")
    if collection not in there:
        raise FingerprintError(f"{place} has no collection or table {collection!r}; it has: {names}.")
    return collection


def spread(total: int, count: int) -> list[int]:
    """Returns at most `count` positions from 0 to `total` - 1, evenly spread."""
    count = min(total, count)
    return [number * total // count for number in range(count)]


def embedded_text(payload: Mapping[str, Any], keys: Sequence[str], text: str | None = None) -> str | None:
    """Returns the text of a stored document as it was embedded.

    LlamaIndex stores a node as JSON and embeds its text with its metadata.

    Args:
        payload: What is stored beside the vector.
        keys: Names under which LangChain's classes keep the text; the first that is there counts.
        text: The text, where the store keeps it apart.

    Raises:
        MissingExtraError: LlamaIndex wrote it, and is not installed.
    """
    if "_node_content" in payload:
        require("llama_index.core", extra="llama-index")
        from llama_index.core.schema import MetadataMode
        from llama_index.core.vector_stores.utils import metadata_dict_to_node

        node = metadata_dict_to_node(dict(payload), text=text)
        return str(node.get_content(metadata_mode=MetadataMode.EMBED))
    found = text if text is not None else next((payload[key] for key in keys if key in payload), None)
    return found if isinstance(found, str) else None
