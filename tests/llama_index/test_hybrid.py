"""Hybrid search in Qdrant with one loaded bge-m3."""

from __future__ import annotations

import gc
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from bge_integrations.errors import SettingsError
from bge_integrations.llama_index import BgeM3Rerank, BgeSparseEmbedding, HuggingFaceBgeEmbedding, bge_m3_hybrid
from tests.checkpoints_of_pairs import reference_m3

QUERY = "what is a vector?"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Retrieval with dense vectors finds passages.",
    "样例数据 样例文档 向量",
    "Emoji and accents: naïve café",
    "vector store",
    "",
    "questions that share a meaning, not only words",
    "12345 67890",
]

pytestmark = [
    pytest.mark.usefixtures("kept_m3"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant"),
]


def _store(client: QdrantClient, sparse: BgeSparseEmbedding) -> QdrantVectorStore:
    return QdrantVectorStore(
        "texts",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )


def _scaled(scores: dict[int, float]) -> dict[int, float]:
    least, most = min(scores.values()), max(scores.values())
    return {place: (score - least) / (most - least) for place, score in scores.items()}


def _best(scores: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:count])


def _fused(folder: Path, count: int, alpha: float) -> dict[int, float]:
    """Relative score fusion: both lists' scores from 0 to 1, and what a list lacks counts as 0."""
    query, texts = reference_m3(folder, [QUERY]), reference_m3(folder, TEXTS)
    cosines = {place: float(score) for place, score in enumerate(texts.dense @ query.dense[0])}
    lexical = {
        place: sum(weight * weights[token] for token, weight in query.sparse[0].items() if token in weights)
        for place, weights in enumerate(texts.sparse)
        if set(weights) & set(query.sparse[0])
    }
    assert len(lexical) > 2
    dense, sparse = _scaled(_best(cosines, count)), _scaled(_best(lexical, count))
    return {place: alpha * dense.get(place, 0) + (1 - alpha) * sparse.get(place, 0) for place in {**dense, **sparse}}


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_a_store_on_disk_ranks_as_computed_by_hand(bge_m3: Path, tmp_path: Path, alpha: float) -> None:
    dense, sparse = bge_m3_hybrid(bge_m3, device="cpu")
    nodes = [TextNode(text=text, id_=str(uuid.UUID(int=place))) for place, text in enumerate(TEXTS)]
    client = QdrantClient(path=str(tmp_path / "store"))
    context = StorageContext.from_defaults(vector_store=_store(client, sparse))
    VectorStoreIndex(nodes, storage_context=context, embed_model=dense)
    client.close()
    del client, context

    client = QdrantClient(path=str(tmp_path / "store"))
    index = VectorStoreIndex.from_vector_store(_store(client, sparse), embed_model=dense)
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid", similarity_top_k=4, sparse_top_k=4, hybrid_top_k=8, alpha=alpha
    )
    found = {uuid.UUID(scored.node_id).int: scored.get_score() for scored in retriever.retrieve(QUERY)}
    client.close()
    expected = _fused(bge_m3, 4, alpha)
    assert found == pytest.approx(expected, abs=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_texts_and_queries_without_words_are_stored_and_found_by_their_dense_vectors(bge_m3: Path) -> None:
    dense, sparse = bge_m3_hybrid(bge_m3, device="cpu")
    assert sparse.get_text_embedding("</s>") == {}
    client = QdrantClient(":memory:")
    context = StorageContext.from_defaults(vector_store=_store(client, sparse))
    nodes = [TextNode(text=text) for text in (*TEXTS[:3], "</s>")]  # LlamaIndex itself leaves empty ones out
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=dense)
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=4, sparse_top_k=4, hybrid_top_k=8)
    for query in (QUERY, "", "</s>"):
        assert {scored.text for scored in retriever.retrieve(query)} == {node.text for node in nodes}
    client.close()


def test_both_embeddings_use_one_model(bge_m3: Path) -> None:
    gc.collect()
    dense, sparse = bge_m3_hybrid(bge_m3, device="cpu", precision="bfloat16", query_instruction="find: ")
    assert dense.encoder.backend is sparse.encoder.backend
    assert BgeM3Rerank(bge_m3, device="cpu", precision="bfloat16").encoder.backend is sparse.encoder.backend
    assert (dense.query_instruction, sparse.query_instruction) == ("find: ", "find: ")
    assert isinstance(dense, HuggingFaceBgeEmbedding)


def test_dense_vectors_are_the_models_own(bge_m3: Path) -> None:
    dense, _ = bge_m3_hybrid(bge_m3, device="cpu")
    expected = reference_m3(bge_m3, TEXTS).dense
    np.testing.assert_allclose(dense.get_text_embedding_batch(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose([dense.get_query_embedding(text) for text in TEXTS], expected, atol=1e-4)


def test_a_setting_that_one_of_them_lacks_is_refused(bge_m3: Path) -> None:
    with pytest.raises(SettingsError, match="truncate_dim=8 is unknown"):
        bge_m3_hybrid(bge_m3, truncate_dim=8)


def test_importing_the_package_needs_no_vector_store() -> None:
    program = (
        "import sys, bge_integrations.llama_index; "
        "print({'qdrant_client', 'llama_index.vector_stores', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
