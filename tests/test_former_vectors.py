"""Vectors that the former classes made stay valid: of documents that are stored, and of queries that look for them."""

from __future__ import annotations

from typing import Any

import pytest

from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.adapters import assert_close
from tests.former_vectors import LIVING, PACKAGES, QUERIES, TEXTS, stored, stored_versions

pytestmark = pytest.mark.usefixtures("kept_minilm")

# What langchain-community's class puts before the queries of a model that it does not know.
COMMUNITY = "Represent this question for searching relevant passages: "
ENCODE_KWARGS: tuple[dict[str, Any], ...] = (
    {},
    {"normalize_embeddings": True},
    {"normalize_embeddings": False},
    {"batch_size": 2},
)


@pytest.mark.parametrize("encode_kwargs", ENCODE_KWARGS, ids=str)
@pytest.mark.parametrize(
    ("name", "settings"), [("langchain-community", {"query_instruction": COMMUNITY}), ("langchain-huggingface", {})]
)
def test_in_langchain(minilm: str, name: str, settings: dict[str, Any], encode_kwargs: dict[str, Any]) -> None:
    embeddings = HuggingFaceBgeEmbeddings(model_name=minilm, encode_kwargs=encode_kwargs, **settings)
    former = stored(name)
    assert_close(embeddings.embed_documents(TEXTS), former.texts)
    assert_close([embeddings.embed_query(query) for query in QUERIES], former.queries)


def test_in_llama_index(minilm: str) -> None:
    embedding = HuggingFaceBgeEmbedding(minilm)
    former = stored("llama-index")
    assert_close(embedding.get_text_embedding_batch(TEXTS), former.texts)
    assert_close([embedding.get_query_embedding(query) for query in QUERIES], former.queries)


def test_the_versions_that_made_them_are_stored() -> None:
    assert tuple(stored_versions()) == PACKAGES


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVING)
def test_the_living_classes_still_make_them(minilm: str, name: str) -> None:
    living, former = LIVING[name](minilm), stored(name)
    assert_close(living.texts, former.texts)
    assert_close(living.queries, former.queries)
