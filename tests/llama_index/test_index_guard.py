"""`guard` of LlamaIndex's indexes: what is recorded where, and what is refused, in real stores that are reopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, SimpleKeywordTableIndex, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.storage.kvstore import SimpleKVStore

from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import Fingerprint
from bge_integrations.llama_index import HuggingFaceBgeEmbedding, guard
from tests.index_processes import in_new_process
from tests.llama_index.stores import MISSING, NODES, OPENERS, fill, outcome

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

CHANGES: dict[str, dict[str, Any]] = {
    "same": {},
    "precision": {"precision": "bfloat16"},
    "instruction": {"text_instruction": "passage: "},
    "unnormalised": {"normalize": False},
}

each_store = pytest.mark.parametrize(
    "store",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in MISSING, reason=f"needs: pip install llama-index-vector-stores-{name} (in the group dev)"
            ),
        )
        for name in OPENERS
    ],
)


@pytest.fixture(scope="module")
def outcomes(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What `guard` says in a new process of indexes that another process has filled, by change and store."""
    folder = tmp_path_factory.mktemp("stores")
    options = [{"model_name": minilm, **change} for change in CHANGES.values()]
    in_new_process("tests.llama_index.stores", "fill", folder, options[:1])
    return dict(zip(CHANGES, in_new_process("tests.llama_index.stores", "check", folder, options), strict=True))


@pytest.mark.slow
@each_store
def test_an_index_that_is_reopened_fits_its_model(store: str, outcomes: dict[str, dict[str, str]]) -> None:
    assert outcomes["same"][store] == "fits"
    assert outcomes["precision"][store] == "fits"


@pytest.mark.slow
@each_store
def test_an_index_that_is_reopened_refuses_other_settings(store: str, outcomes: dict[str, dict[str, str]]) -> None:
    assert "another instruction for documents: '' then, 'passage: ' now" in outcomes["instruction"][store]
    assert "vectors were normalised then, and are not now" in outcomes["unnormalised"][store]


@pytest.fixture(scope="module")
def embed_model(minilm: str) -> HuggingFaceBgeEmbedding:
    return HuggingFaceBgeEmbedding(minilm)


@each_store
def test_an_index_from_before_the_guard_is_probed_with_its_metadata(
    store: str, embed_model: HuggingFaceBgeEmbedding, minilm: str, tmp_path: Path
) -> None:
    """LlamaIndex embeds a node's text with its metadata."""
    fill(tmp_path, store, embed_model, guarded=False)
    refused = outcome(tmp_path, store, HuggingFaceBgeEmbedding(minilm, text_instruction="passage: "))
    assert "the vectors of 5 of 5 documents differ" in refused
    assert "they agree with the document instruction ''; now it is 'passage: '" in refused
    assert outcome(tmp_path, store, embed_model) == "fits"


def test_a_storage_context_takes_the_settings_model(
    embed_model: HuggingFaceBgeEmbedding, minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "simple", embed_model)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "simple"))
    monkeypatch.setattr(Settings, "_embed_model", embed_model)
    assert guard(context, persist_dir=tmp_path / "simple") is context
    other = HuggingFaceBgeEmbedding(minilm, text_instruction="passage: ")
    with pytest.raises(IndexMismatchError, match="another instruction"):
        guard(context, embed_model=other, persist_dir=tmp_path / "simple")


def test_an_index_in_memory_is_compared_each_time(embed_model: HuggingFaceBgeEmbedding, minilm: str) -> None:
    index = guard(VectorStoreIndex(NODES, embed_model=embed_model))
    other = HuggingFaceBgeEmbedding(minilm, text_instruction="passage: ")
    with pytest.raises(IndexMismatchError, match="the SimpleVectorStore does not fit"):
        guard(index, embed_model=other)


def test_a_query_cache_does_not_matter(embed_model: HuggingFaceBgeEmbedding, minilm: str, tmp_path: Path) -> None:
    fill(tmp_path, "simple", HuggingFaceBgeEmbedding(minilm, embeddings_cache=SimpleKVStore()))
    assert outcome(tmp_path, "simple", embed_model) == "fits"
    recorded = Fingerprint.from_json((tmp_path / "simple" / "bge_fingerprint.json").read_text())
    assert recorded == embed_model.fingerprint()


def test_other_embeddings_are_probed_too(embed_model: HuggingFaceBgeEmbedding, tmp_path: Path) -> None:
    fill(tmp_path, "simple", MockEmbedding(embed_dim=384))
    assert outcome(tmp_path, "simple", MockEmbedding(embed_dim=384)) == "fits"
    found = outcome(tmp_path, "simple", embed_model)
    assert "another model: 'unknown' then, 'model' now" in found


def test_an_index_without_vectors_is_empty(embed_model: HuggingFaceBgeEmbedding) -> None:
    index = SimpleKeywordTableIndex(nodes=NODES, llm=MockLLM())
    assert guard(index, embed_model=embed_model) is index


def test_a_store_that_keeps_nothing_can_not_be_overwritten(embed_model: HuggingFaceBgeEmbedding) -> None:
    with pytest.raises(FingerprintError, match="has no place for a fingerprint; give fingerprint_file="):
        guard(VectorStoreIndex(NODES, embed_model=embed_model), overwrite=True)
