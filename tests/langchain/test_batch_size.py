"""The field `batch_size` of LangChain's classes: how many texts go into a forward pass at most."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from pydantic import ValidationError

from bge_integrations.langchain import BgeM3Reranker, BgeReranker, BgeSparseEmbeddings, HuggingFaceBgeEmbeddings
from tests.langchain.former import assert_close

TEXTS = ["fox", "dog", "lazy", "quick", "brown", "vector"]

pytestmark = pytest.mark.usefixtures("kept_small_en", "kept_m3", "kept_reranker_base")


def batches(embeddings: Any, run: Callable[[], object]) -> tuple[int, object]:  # noqa: ANN401 - any of the classes
    holder = embeddings.reranker if hasattr(embeddings, "reranker") else embeddings.encoder
    before = holder.stats().batches
    found = run()
    return holder.stats().batches - before, found


def test_of_embeddings_limits_the_texts_in_a_forward_pass(bge_small_en: Path) -> None:
    free, small = (HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), batch_size=size) for size in (None, 2))
    number, expected = batches(free, lambda: free.embed_documents(TEXTS))
    assert number == 1
    number, found = batches(small, lambda: small.embed_documents(TEXTS))
    assert number == 3
    assert_close(found, expected)  # type: ignore[arg-type]
    assert small.encoder.backend is free.encoder.backend
    small.batch_size = 3
    assert batches(small, lambda: small.embed_documents(TEXTS))[0] == 2


def test_of_every_class_limits_them(bge_m3: Path, bge_reranker_base: Path) -> None:
    sparse = BgeSparseEmbeddings(model_name=str(bge_m3), batch_size=2)
    assert batches(sparse, lambda: sparse.document_weights(TEXTS))[0] == 3
    documents = [Document(text) for text in TEXTS]
    for reranker in (
        BgeReranker(model_name=str(bge_reranker_base), batch_size=2),
        BgeM3Reranker(model_name=str(bge_m3), batch_size=2, weights=(1, 0, 0)),
    ):
        of_query = isinstance(reranker, BgeM3Reranker)
        number, _ = batches(reranker, partial(reranker.compress_documents, documents, "fox"))
        assert number == 3 + of_query


def test_may_be_said_in_the_dictionaries_as_well_but_not_differently(bge_small_en: Path) -> None:
    name = str(bge_small_en)
    for keywords in ({"encode_kwargs": {"batch_size": 2}}, {"query_encode_kwargs": {"batch_size": 2}}):
        assert HuggingFaceBgeEmbeddings(model_name=name, batch_size=2, **keywords).batch_size == 2
        with pytest.raises(ValidationError, match=r"batch_size=3, but \w*encode_kwargs says 2; say it once"):
            HuggingFaceBgeEmbeddings(model_name=name, batch_size=3, **keywords)
    embeddings = HuggingFaceBgeEmbeddings(model_name=name, encode_kwargs={"batch_size": 2})
    assert batches(embeddings, lambda: embeddings.embed_documents(TEXTS))[0] == 3
