"""What can be evaluated: encoders, embeddings and retrievers of both frameworks, and functions.

Objects are told apart by their methods, so that no framework has to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.ranking import BestDocuments, best_of, in_order_of_ids
from bge_integrations.evaluation.vectors import Embed, Floats, unique_vectors
from bge_integrations.texts import kind_of

Run = dict[str, dict[str, float]]
"""By query id the scores of the documents found, best first."""

Similarity = Literal["cosine", "dot"]
Output = Literal["dense", "sparse"]

# Documents that are embedded before they are compared and forgotten.
_BLOCK = 16384
_IDS = ("id", "_id", "doc_id", "document_id", "node_id", "ref_doc_id")


class Searcher(Protocol):
    """Finds the best documents of every query."""

    def search(self, data: RetrievalData, depth: int, *, ignore_identical_ids: bool) -> Run:
        """Searches.

        Args:
            data: Queries and corpus.
            depth: The number of documents to return for a query.
            ignore_identical_ids: Drop the document whose id is that of the query, before the cut.
        """
        ...


@dataclass(frozen=True)
class VectorSearcher:
    """Compares the vectors of queries and documents, all with all.

    Attributes:
        queries: Embeds queries.
        documents: Embeds documents.
        similarity: What is compared: the cosine, or the inner product.
    """

    queries: Embed
    documents: Embed
    similarity: Similarity = "cosine"

    def search(self, data: RetrievalData, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`. Equal texts are embedded once, and documents block by block."""
        asked = self._vectors(self.queries, list(data.queries.values()))
        texts, ids = in_order_of_ids(data.corpus)
        best = BestDocuments(list(data.queries), asked, depth, ignore_identical_ids=ignore_identical_ids)
        for start in range(0, len(texts), _BLOCK):
            best.add(self._vectors(self.documents, texts[start : start + _BLOCK]), start)
        return best.found(ids)

    def _vectors(self, embed: Embed, texts: list[str]) -> Floats:
        vectors = unique_vectors(embed, texts)
        return unit_rows(vectors) if self.similarity == "cosine" else vectors


@dataclass(frozen=True)
class LexicalSearcher:
    """Compares lexical weights: the sum of the products of the weights of tokens that query and document share.

    Attributes:
        queries: Gives the weights of queries by token id.
        documents: Gives the weights of documents by token id.
    """

    queries: Callable[[list[str]], Sequence[Mapping[int, float]]]
    documents: Callable[[list[str]], Sequence[Mapping[int, float]]]

    def search(self, data: RetrievalData, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`."""
        asked = self.queries(list(data.queries.values()))
        texts, ids = in_order_of_ids(data.corpus)
        tokens, weights, starts = _flat(self.documents(texts))
        room = 1 + max([int(tokens.max(initial=0)), *(token for one in asked for token in one)])
        run: Run = {}
        for query, one in zip(data.queries, asked, strict=True):
            table = np.zeros(room, dtype=np.float32)
            table[list(one)] = list(one.values())
            scores = np.add.reduceat(np.append(table[tokens] * weights, np.float32(0)), starts)
            scores[np.diff(np.append(starts, len(tokens))) == 0] = 0  # a text without tokens
            found = np.flatnonzero(scores > 0)
            scored = ((document, float(scores[place])) for place in found for document in ids[place])
            run[query] = best_of(scored, query, depth, ignore_identical_ids=ignore_identical_ids)
        return run


@dataclass(frozen=True)
class QuerySearcher:
    """Asks one query after the other: a retriever, or a function.

    Attributes:
        ask: Takes a query's text; returns scores by document id, or pairs of id and score, or ids, best first, or what
            a framework's retriever returns.
    """

    ask: Callable[[str], Any]

    def search(self, data: RetrievalData, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`."""
        by_text: dict[str, str] = {}
        for document in sorted(data.corpus):
            by_text.setdefault(data.corpus[document], document)
        run: Run = {}
        for query, text in data.queries.items():
            scored = _scored(self.ask(text), data, by_text)
            run[query] = best_of(scored.items(), query, depth, ignore_identical_ids=ignore_identical_ids)
        return run


def as_searcher(searcher: object, *, output: Output = "dense", similarity: Similarity = "cosine") -> Searcher:
    """Returns how an object searches.

    Args:
        searcher: A `BgeEncoder`, a `BgeM3Encoder`, LangChain's `Embeddings` or `BaseRetriever`, LlamaIndex's
            `BaseEmbedding` or `BaseRetriever`, a `Searcher`, or a function of a query.
        output: What is compared of bge-m3: "dense" or "sparse".
        similarity: How vectors are compared: "cosine" or "dot".

    Raises:
        SettingsError: It is none of these.
    """
    if not isinstance(searcher, type):
        for method, make in _KINDS:
            if hasattr(searcher, method):
                return make(searcher, output, similarity)
        if callable(searcher):
            return QuerySearcher(searcher)
    raise SettingsError(
        f"searcher={searcher!r} is {kind_of(searcher)}, which can't be evaluated. Give an encoder, embeddings or a "
        "retriever of LangChain or LlamaIndex, or a function that takes a query and returns document ids or scores."
    )


def _of_m3(it: Any, output: Output, similarity: Similarity) -> Searcher:  # noqa: ANN401 - a BgeM3Encoder
    if output == "sparse":
        return LexicalSearcher(
            lambda texts: it.encode_queries(texts, dense=False, colbert=False).sparse,
            lambda texts: it.encode_documents(texts, dense=False, colbert=False).sparse,
        )
    return VectorSearcher(
        lambda texts: it.encode_queries(texts, sparse=False, colbert=False).dense,
        lambda texts: it.encode_documents(texts, sparse=False, colbert=False).dense,
        similarity,
    )


def _each(embed: Callable[[str], Any]) -> Embed:
    """Returns a function of texts that asks for one text at a time, as the frameworks embed queries."""
    return lambda texts: [embed(text) for text in texts]


_KINDS: tuple[tuple[str, Callable[[Any, Output, Similarity], Searcher]], ...] = (
    ("dense_encoder", _of_m3),
    ("encode_queries", lambda it, _, similarity: VectorSearcher(it.encode_queries, it.encode_documents, similarity)),
    (
        "embed_documents",
        lambda it, _, similarity: VectorSearcher(_each(it.embed_query), it.embed_documents, similarity),
    ),
    (
        "get_text_embedding_batch",
        lambda it, _, similarity: VectorSearcher(
            _each(it.get_query_embedding), it.get_text_embedding_batch, similarity
        ),
    ),
    ("invoke", lambda it, *_: QuerySearcher(it.invoke)),
    ("retrieve", lambda it, *_: QuerySearcher(it.retrieve)),
    ("search", lambda it, *_: it),
)
"""By the method that tells them apart: bge-m3, encoders, LangChain's and LlamaIndex's embeddings, LangChain's and
LlamaIndex's retrievers, and searchers."""


def _scored(found: Any, data: RetrievalData, by_text: Mapping[str, str]) -> dict[str, float]:  # noqa: ANN401
    if isinstance(found, Mapping):
        return _known({str(id_): float(score) for id_, score in found.items()}, data)
    pairs = [_pair(item, data, by_text) for item in found]
    has_scores = any(score is not None for _, score in pairs)
    scored: dict[str, float] = {}
    for place, (id_, score) in enumerate(pairs):
        # Without scores, the order is all that is known.
        scored.setdefault(id_, float(-place) if not has_scores else float("-inf") if score is None else float(score))
    return _known(scored, data)


def _pair(item: Any, data: RetrievalData, by_text: Mapping[str, str]) -> tuple[str, float | None]:  # noqa: ANN401
    if isinstance(item, (str, int)):
        return str(item), None
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, int)):
        return str(item[0]), float(item[1])
    score = None
    if isinstance(item, tuple):  # LangChain's documents with scores
        item, score = item
    elif hasattr(item, "node"):  # LlamaIndex's NodeWithScore
        item, score = item.node, item.score
    metadata = getattr(item, "metadata", None) or {}
    named = [metadata.get(key) for key in _IDS] + [getattr(item, key, None) for key in _IDS]
    known = [str(id_) for id_ in named if id_ is not None and str(id_) in data.corpus]
    text = str(getattr(item, "page_content", None) or getattr(item, "text", ""))
    if known:
        return known[0], score
    if text in by_text:
        return by_text[text], score
    ids = ", ".join(repr(id_) for id_ in named if id_ is not None) or "none"
    raise SettingsError(
        f"The retriever found {text[:60]!r}, which is not in the corpus of {data.name} by its ids ({ids}) or its text. "
        "Put the document's id into its metadata as 'id' when you index it."
    )


def _known(scores: dict[str, float], data: RetrievalData) -> dict[str, float]:
    unknown = next((id_ for id_ in scores if id_ not in data.corpus), None)
    if unknown is not None:
        raise SettingsError(
            f"The searcher found the id {unknown!r}, which is not in the corpus of {data.name}. Index the corpus under "
            "its own ids."
        )
    return scores


def _flat(weights: Iterable[Mapping[int, float]]) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    rows = list(weights)
    lengths = np.array([len(row) for row in rows])
    tokens = np.array([token for row in rows for token in row], dtype=np.int64)
    values = np.array([value for row in rows for value in row.values()], dtype=np.float32)
    return tokens, values, np.cumsum(lengths) - lengths
