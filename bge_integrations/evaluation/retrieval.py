"""Evaluates how well something finds documents."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from bge_integrations.backend.machine.versions import version_of
from bge_integrations.calls.progress import Progress, warn_user
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import EvaluationWarning, SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.held import Work, described, held_by, name_of
from bge_integrations.evaluation.metrics import DEFAULT_METRICS, parse_metric
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.reranking import reranked
from bge_integrations.evaluation.searchers import Output, QuerySearcher, Run, Searcher, Similarity, as_searcher
from bge_integrations.m3.scores import M3Weights

__all__ = ["evaluate_retrieval"]

_VERSIONS = ("bge-integrations", "openvino", "torch", "sentence-transformers", "tokenizers", "numpy")


def evaluate_retrieval(
    searcher: object | None,
    data: RetrievalData,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    depth: int = 1000,
    reranker: object | None = None,
    rerank_depth: int = 100,
    output: Output = "dense",
    weights: M3Weights | Sequence[float] | None = None,
    similarity: Similarity = "cosine",
    ignore_identical_ids: bool = False,
    cache: EvaluationCache | None = None,
    show_progress: bool = False,
    name: str | None = None,
) -> RetrievalReport:
    """Searches the corpus for every query, and measures what is found.

    Args:
        searcher: A `BgeEncoder`, a `BgeM3Encoder`, LangChain's `Embeddings` or `BaseRetriever`, LlamaIndex's
            `BaseEmbedding` or `BaseRetriever`, or a function that takes a query and returns document ids, or scores by
            document id. A report: the documents that it has found, for a reranker. `None`: the candidates of `data`,
            for a reranker alone.
        data: Queries, corpus and grades.
        metrics: Names such as "ndcg@10"; see `metrics.parse_metric`.
        depth: The number of documents to find for a query.
        reranker: A `BgeReranker` or a `BgeM3Encoder`, also inside an adapter of this package, which orders the best
            documents again, or a function of a query and a list of texts that returns their scores.
        rerank_depth: The number of documents that the reranker orders.
        output: What is compared of bge-m3: "dense", "sparse", "colbert", or "mixed", the weighted mean of all three.
            The last two compare all queries with all documents token by token, which takes long for a large corpus.
        weights: For "mixed", as for `BgeM3Encoder.score`.
        similarity: How vectors are compared: "cosine" or "dot".
        ignore_identical_ids: Drop a document whose id is that of the query, before the cut. Data such as ArguAna and
            QuoraRetrieval, whose queries are documents of the corpus, need it.
        cache: Keeps vectors, lexical weights and scores of this package's own classes for the next evaluation; `None`:
            everything is computed.
        show_progress: Whether to show progress bars, for models of this package.
        name: The searcher's name in reports; `None`: made of its model's name.

    Returns:
        Means, figures of every query, and what was found.

    Raises:
        SettingsError: An argument is wrong, or the searcher returns an id or a text that is not in the corpus.
        EvaluationDataError: The report given as searcher is of other data.
        BgeError: Embedding fails.
    """
    measures = [parse_metric(metric) for metric in dict.fromkeys(metrics)]
    if not measures:
        raise SettingsError("metrics is empty; name at least one, such as 'ndcg@10'.")
    for argument, value in (("depth", depth), ("rerank_depth", rerank_depth)):
        if value < 1:
            raise SettingsError(f"{argument}={value} leaves no documents; give at least 1.")
    found: Searcher | None = None
    if searcher is not None:
        found = as_searcher(searcher, output=output, weights=weights, similarity=similarity, cache=cache)
    elif data.candidates is None:
        raise SettingsError(f"searcher=None needs data with candidates, and {data.name} has none. Give a searcher.")
    deepest = max(measure.depth for measure in measures)
    before = Work.of(searcher, reranker)
    start = time.perf_counter()
    run = (
        _candidates(data)
        if found is None
        else _searched(
            found,
            data,
            max(depth, deepest),
            ignore_identical_ids=ignore_identical_ids,
            show_progress=show_progress and held_by(searcher) is not None,
        )
    )
    if isinstance(found, QuerySearcher) and found.is_retriever:
        _warn_of_few(run, min(deepest, len(data.corpus)))
    if reranker is not None:
        run = reranked(run, data, reranker, rerank_depth, cache=cache, show_progress=show_progress)
    seconds = time.perf_counter() - start
    work = Work.of(searcher, reranker).since(before)
    truncated = work.truncated if cache is None else _truncated(searcher, reranker, data)
    described_searcher = described(searcher)
    if isinstance(searcher, RetrievalReport):
        seconds += searcher.seconds
        work, truncated = Work(_sum(work.tokens, searcher.tokens)), _sum(truncated, searcher.truncated)
        described_searcher = searcher.settings.get("searcher", {})
    per_query = {
        measure.name: {query: measure.of(list(run.get(query, {})), data.qrels[query]) for query in data.queries}
        for measure in measures
    }
    settings = {
        "searcher": described_searcher,
        "reranker": None if reranker is None else described(reranker),
        "rerank_depth": None if reranker is None else rerank_depth,
        "output": output,
        "similarity": similarity,
        "ignore_identical_ids": ignore_identical_ids,
    }
    return RetrievalReport(
        name=name or name_of(searcher, reranker),
        data=data.name,
        digest=data.digest,
        depth=depth,
        per_query=per_query,
        groups=dict(data.groups or {}),
        run=run,
        settings=settings,
        versions={package: version for package in _VERSIONS if (version := version_of(package))},
        seconds=seconds,
        tokens=work.tokens,
        truncated=truncated,
    )


def _warn_of_few(run: Run, wanted: int) -> None:
    """Warns if a retriever has returned fewer documents than the deepest metric looks at."""
    most = max(map(len, run.values()))
    if most < wanted:
        warn_user(
            f"The retriever returned at most {most} documents for a query, so metrics with a larger cut can't find "
            "more. Make it with search_kwargs={'k': …} (LangChain) or similarity_top_k=… (LlamaIndex).",
            EvaluationWarning,
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _candidates(data: RetrievalData) -> Run:
    candidates = data.candidates or {}
    return {
        query: {document: -float(place) for place, document in enumerate(dict.fromkeys(candidates.get(query, ())))}
        for query in data.queries
    }


def _searched(
    searcher: Searcher, data: RetrievalData, depth: int, *, ignore_identical_ids: bool, show_progress: bool
) -> Run:
    total = len(set(data.queries.values())) + len(set(data.corpus.values()))
    with Progress(total, shown=show_progress, title="Embedding") as progress, progress.whole():
        return searcher.search(data, depth, ignore_identical_ids=ignore_identical_ids)


def _truncated(searcher: object | None, reranker: object | None, data: RetrievalData) -> int | None:
    """Counts texts that are cut, also those whose vectors were kept. For pairs and bge-m3's outputs it is not known."""
    held = held_by(searcher)
    if reranker is not None or not isinstance(held, BgeEncoder):
        return None
    asked: BgeEncoder = getattr(searcher, "query_encoder", held)
    queries, documents = (list(dict.fromkeys(texts.values())) for texts in (data.queries, data.corpus))
    counts = (asked.count_tokens(queries, role="query"), asked), (held.count_tokens(documents, role="document"), held)
    return sum(int(np.count_nonzero(tokens > encoder.max_length)) for tokens, encoder in counts)
