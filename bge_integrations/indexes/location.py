"""Opens an index by its path or address, and recognises its kind by its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from bge_integrations._optional import require
from bge_integrations.errors import FingerprintError
from bge_integrations.indexes import chroma, lance, parquet
from bge_integrations.indexes.files import FILE_NAME, FileBeside, InMemory
from bge_integrations.indexes.index import Document, Index, documents_of, spread
from bge_integrations.indexes.milvus import open_milvus
from bge_integrations.indexes.postgres import open_postgres
from bge_integrations.indexes.qdrant import open_qdrant
from bge_integrations.redaction import without_credentials

__all__ = ["Server", "open_index"]

Server = Literal["qdrant", "milvus"]

_POSTGRES = ("postgresql://", "postgresql+")
_WEB = ("http://", "https://")
_SIMPLE, _NODES = "default__vector_store.json", "docstore.json"


def open_index(location: str, *, collection: str | None = None, server: str | None = None) -> Index:
    """Opens an index. Its `close` closes what was opened.

    Args:
        location: Folder of Chroma, Qdrant, LanceDB, FAISS (LangChain) or LlamaIndex; file of Milvus Lite; Parquet file,
            or folder of Parquet files; JSON file of a fingerprint; address of a database, postgresql://…, or of a
            server, http://….
        collection: Name of the collection or table; `None`: the only one.
        server: What a server is: "qdrant" or "milvus".

    Raises:
        FingerprintError: There is no such index, its kind is unknown, or it can't be read.
        MissingExtraError: The package of this kind of store is not installed.
    """
    if location.startswith(_POSTGRES):
        return open_postgres(location, collection)
    if location.startswith(_WEB):
        if server not in get_args(Server):
            raise FingerprintError(
                f"{without_credentials(location)} can be any server; name its kind: server='qdrant' or server='milvus'."
            )
        return open_qdrant(location, collection) if server == "qdrant" else open_milvus(location, collection)
    path = Path(os.path.expanduser(location))
    if not path.exists():
        raise FingerprintError(f"there is no index {location!r} (looked in {Path.cwd()}).")
    found = _of_file(path, collection) if path.is_file() else _of_folder(path, collection)
    if found is None:
        raise FingerprintError(
            f"{location} is not an index of a known kind: a folder of Chroma, Qdrant, LanceDB, FAISS or LlamaIndex, "
            f"Parquet files, a file of Milvus Lite, or a folder with a {FILE_NAME}."
        )
    return found


def _of_file(path: Path, collection: str | None) -> Index | None:
    if path.suffix == parquet.ENDING:
        return parquet.ParquetIndex(path)
    if path.suffix == ".db":
        return open_milvus(str(path), collection)
    return FileBeside(None, path) if path.suffix == ".json" else None


def _of_folder(path: Path, collection: str | None) -> Index | None:
    beside = path / FILE_NAME
    kinds: tuple[tuple[bool, Callable[[], Index]], ...] = (
        ((path / chroma.FILE).is_file(), lambda: chroma.open_chroma(path, collection)),
        ((path / "collection").is_dir(), lambda: open_qdrant(str(path), collection)),
        (any(path.glob(f"*{lance.ENDING}")), lambda: lance.open_lance(path, collection)),
        (any(path.glob(f"*{parquet.ENDING}")), lambda: parquet.ParquetIndex(path)),
        (path.suffix == ".db", lambda: open_milvus(str(path), collection)),
        ((path / _NODES).is_file() and (path / _SIMPLE).is_file(), lambda: FileBeside(_persisted(path), beside)),
        # FAISS of LangChain keeps texts in a pickle, which can run code and is not opened.
        (any(path.glob("*.faiss")), lambda: FileBeside(None, beside, f"the FAISS index in {str(path)!r}")),
        (beside.is_file(), lambda: FileBeside(None, beside, f"the index in {str(path)!r}")),
    )
    return next((make() for is_it, make in kinds if is_it), None)


def _persisted(folder: Path) -> Index:
    """Returns the index in a persist folder of LlamaIndex. Its documents are read if it is a SimpleVectorStore."""
    name = f"the LlamaIndex folder {str(folder)!r}"
    with (folder / _SIMPLE).open("rb") as file:
        is_json = file.read(1) == b"{"
    if not is_json:  # FAISS
        return InMemory(name, lambda: 0, lambda _: [])
    require("llama_index.core", extra="llama-index")
    from llama_index.core.schema import BaseNode, MetadataMode
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.core.vector_stores import SimpleVectorStore

    vectors = SimpleVectorStore.from_persist_dir(str(folder)).data.embedding_dict
    nodes = SimpleDocumentStore.from_persist_dir(str(folder))

    def sample(count: int) -> list[Document]:
        ids = list(vectors)
        chosen = [ids[place] for place in spread(len(ids), count)]
        found = [(nodes.get_document(one, raise_error=False), vectors[one]) for one in chosen]
        return documents_of(
            (node.get_content(metadata_mode=MetadataMode.EMBED), vector)
            for node, vector in found
            if isinstance(node, BaseNode)
        )

    return InMemory(name, lambda: len(vectors), sample)
