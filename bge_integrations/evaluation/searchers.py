"""What can be evaluated: encoders, embeddings and retrievers of both frameworks, and functions.

Objects are told apart by their methods, so that no framework has to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.calls.m3 import M3Output
from bge_integrations.errors import EvaluationDataError, SettingsError
from bge_integrations.evaluation.cache import EvaluationCache, Weights
from bge_integrations.evaluation.data import RetrievalData, Searched
from bge_integrations.evaluation.m3_search import Encode, M3Searcher, encoders
from bge_integrations.evaluation.ranking import BestDocuments, best_of, in_order_of_ids
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.vectors import Embed, Floats, unique_vectors
from bge_integrations.m3.scores import M3Weights
from bge_integrations.texts import kind_of

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.m3 import BgeM3Encoder

Run = dict[str, dict[str, float]]
"""By query id the scores of the documents found, best first."""

Similarity = Literal["cosine", "dot"]
Output = Literal["dense", "sparse", "colbert", "mixed"]

# Documents that are embedded before they are compared and forgotten.
_BLOCK = 16384
_IDS = ("id", "_id", "doc_id", "document_id", "node_id", "ref_doc_id")


class Searcher(Protocol):
    """Finds the best documents of every query."""

    def search(self, data: Searched, depth: int, *, ignore_identical_ids: bool) -> Run:
        """Searches.

        Args:
            data: Queries and corpus.
            depth: The number of documents to return for a query.
            ignore_identical_ids: Drop the document whose id is that of the query, before the cut.
        """
        ...


@dataclass(frozen=True)
class VectorSearcher:
    """Compares the vectors of queries and documents, all with all."""

    queries: Embed
    documents: Embed
    similarity: Similarity = "cosine"

    def search(self, data: Searched, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`. Equal texts are embedded once, and documents block by block."""
        asked = self._vectors(self.queries, list(data.queries.values()))
        texts, ids = in_order_of_ids(data.corpus)
        best = BestDocuments(list(data.queries), depth, ignore_identical_ids=ignore_identical_ids)
        for start in range(0, len(texts), _BLOCK):
            vectors = self._vectors(self.documents, texts[start : start + _BLOCK])
            best.add(start, len(vectors), lambda rows, vectors=vectors: asked[rows] @ vectors.T)  # type: ignore[misc]
        return best.found(ids)

    def _vectors(self, embed: Embed, texts: list[str]) -> Floats:
        vectors = unique_vectors(embed, texts)
        return unit_rows(vectors) if self.similarity == "cosine" else vectors


@dataclass(frozen=True)
class QuerySearcher:
    """Asks one query after the other: a retriever, or a function.

    Attributes:
        ask: Takes a query's text; returns scores by document id, or pairs of id and score, or ids, best first, or what
            a framework's retriever returns.
        is_retriever: Whether it is a framework's retriever, which returns few documents unless it is told otherwise.
    """

    ask: Callable[[str], Any]
    is_retriever: bool = False

    def search(self, data: Searched, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`."""
        by_text: dict[str, str] = {}
        for document in sorted(data.corpus):
            by_text.setdefault(data.corpus[document], document)
        run: Run = {}
        for query, text in data.queries.items():
            scored = _scored(self.ask(text), data, by_text)
            run[query] = best_of(scored.items(), query, depth, ignore_identical_ids=ignore_identical_ids)
        return run


@dataclass(frozen=True)
class RunSearcher:
    """Takes the documents that a report has found."""

    report: RetrievalReport

    def search(self, data: Searched, depth: int, *, ignore_identical_ids: bool) -> Run:
        """See `Searcher.search`.

        Raises:
            EvaluationDataError: The report is of other data.
        """
        if not isinstance(data, RetrievalData) or self.report.digest != data.digest:
            raise EvaluationDataError(
                f"The report of {self.report.name} is of other data ({self.report.data}) than {data.name}."
            )
        return {
            query: best_of(found.items(), query, depth, ignore_identical_ids=ignore_identical_ids)
            for query, found in self.report.run.items()
        }


def as_searcher(
    searcher: object,
    *,
    output: Output = "dense",
    weights: M3Weights | Sequence[float] | None = None,
    similarity: Similarity = "cosine",
    cache: EvaluationCache | None = None,
) -> Searcher:
    """Returns how an object searches.

    Args:
        searcher: A `BgeEncoder`, a `BgeM3Encoder`, LangChain's `Embeddings` or `BaseRetriever`, LlamaIndex's
            `BaseEmbedding` or `BaseRetriever`, a report whose documents are taken again, a `Searcher`, or a function
            of a query.
        output: What is compared of bge-m3: "dense", "sparse", "colbert", or "mixed", the weighted mean of all three.
        weights: For "mixed", as for `BgeM3Encoder.score`.
        similarity: How vectors are compared: "cosine" or "dot".
        cache: Keeps what encoders of this package compute, except token vectors; `None`: nothing is kept.

    Raises:
        SettingsError: It is none of these, or a choice is unknown.
    """
    for argument, value, known in (
        ("output", output, get_args(Output)),
        ("similarity", similarity, get_args(Similarity)),
    ):
        if value not in known:
            raise SettingsError(f"{argument}={value!r} is unknown; choose one of {', '.join(map(repr, known))}.")
    if not isinstance(searcher, type):
        how = _How(output, M3Weights.read(weights), similarity, cache)
        for method, make in _KINDS:
            if hasattr(searcher, method):
                return make(searcher, how)
        if callable(searcher):
            return QuerySearcher(searcher)
    raise SettingsError(
        f"searcher={searcher!r} is {kind_of(searcher)}, which can't be evaluated. Give an encoder, embeddings or a "
        "retriever of LangChain or LlamaIndex, or a function that takes a query and returns document ids or scores."
    )


@dataclass(frozen=True)
class _How:
    output: Output
    weights: M3Weights
    similarity: Similarity
    cache: EvaluationCache | None

    def of_encoder(self, encoder: BgeEncoder) -> VectorSearcher:
        queries, documents = encoder.encode_queries, encoder.encode_documents
        if self.cache is None or not hasattr(encoder, "cache_namespace"):
            return VectorSearcher(queries, documents, self.similarity)
        return VectorSearcher(
            self.cache.vectors(encoder.cache_namespace("query"), queries),
            self.cache.vectors(encoder.cache_namespace("document"), documents),
            self.similarity,
        )

    def of_m3(self, encoder: BgeM3Encoder) -> Searcher:
        dense = encoder.dense_encoder()
        if self.output == "dense":
            return self.of_encoder(dense)
        weights = {"sparse": M3Weights(0, 1, 0), "colbert": M3Weights(0, 0, 1)}.get(self.output, self.weights)
        queries, documents = encoders(encoder, weights)
        if self.cache is None or self.output != "sparse":
            return M3Searcher(queries, documents, weights)
        kept_queries = self.cache.weights(f"{dense.cache_namespace('query')}_sparse", _lexical(queries))
        kept_documents = self.cache.weights(f"{dense.cache_namespace('document')}_sparse", _lexical(documents))
        return M3Searcher(
            lambda texts: M3Output(sparse=list(map(dict, kept_queries(texts)))),
            lambda texts: M3Output(sparse=list(map(dict, kept_documents(texts)))),
            weights,
        )

    def of_functions(self, query: Callable[[str], Any], documents: Embed) -> VectorSearcher:
        """Asks for one query at a time, as the frameworks embed queries."""
        return VectorSearcher(lambda texts: [query(text) for text in texts], documents, self.similarity)


def _lexical(encode: Encode) -> Weights:
    return lambda texts: encode(texts).sparse or []


_KINDS: tuple[tuple[str, Callable[[Any, _How], Searcher]], ...] = (
    ("dense_encoder", lambda it, how: how.of_m3(it)),
    ("encode_queries", lambda it, how: how.of_encoder(it)),
    ("embed_documents", lambda it, how: how.of_functions(it.embed_query, it.embed_documents)),
    ("get_text_embedding_batch", lambda it, how: how.of_functions(it.get_query_embedding, it.get_text_embedding_batch)),
    ("invoke", lambda it, _: QuerySearcher(it.invoke, is_retriever=True)),
    ("retrieve", lambda it, _: QuerySearcher(it.retrieve, is_retriever=True)),
    ("trec_run", lambda it, _: RunSearcher(it)),
    ("search", lambda it, _: it),
)
"""By the method that tells them apart: bge-m3, encoders, LangChain's and LlamaIndex's embeddings, LangChain's and
LlamaIndex's retrievers, reports, and searchers."""


def _scored(found: Any, data: Searched, by_text: Mapping[str, str]) -> dict[str, float]:  # noqa: ANN401
    if isinstance(found, Mapping):
        return _known({str(id_): float(score) for id_, score in found.items()}, data)
    pairs = [_pair(item, data, by_text) for item in found]
    has_scores = any(score is not None for _, score in pairs)
    scored: dict[str, float] = {}
    for place, (id_, score) in enumerate(pairs):
        # Without scores, the order is all that is known.
        scored.setdefault(id_, float(-place) if not has_scores else float("-inf") if score is None else float(score))
    return _known(scored, data)


def _pair(item: Any, data: Searched, by_text: Mapping[str, str]) -> tuple[str, float | None]:  # noqa: ANN401
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


def _known(scores: dict[str, float], data: Searched) -> dict[str, float]:
    unknown = next((id_ for id_ in scores if id_ not in data.corpus), None)
    if unknown is not None:
        raise SettingsError(
            f"The searcher found the id {unknown!r}, which is not in the corpus of {data.name}. Index the corpus under "
            "its own ids."
        )
    return scores
