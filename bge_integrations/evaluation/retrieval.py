"""Evaluates how well something finds documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bge_integrations.backend.machine.versions import version_of
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.metrics import DEFAULT_METRICS, parse_metric
from bge_integrations.evaluation.ranking import best_of
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.searchers import Output, Run, Similarity, as_searcher

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
    similarity: Similarity = "cosine",
    ignore_identical_ids: bool = False,
    name: str | None = None,
) -> RetrievalReport:
    """Searches the corpus for every query, and measures what is found.

    Args:
        searcher: A `BgeEncoder`, a `BgeM3Encoder`, LangChain's `Embeddings` or `BaseRetriever`, LlamaIndex's
            `BaseEmbedding` or `BaseRetriever`, or a function that takes a query and returns document ids, or scores by
            document id. `None`: the candidates of `data`, for a reranker alone.
        data: Queries, corpus and grades.
        metrics: Names such as "ndcg@10"; see `metrics.parse_metric`.
        depth: The number of documents to find for a query.
        reranker: A `BgeReranker` or a `BgeM3Encoder`, whose `score` orders the best documents again, or a function of
            a query and a list of texts that returns their scores.
        rerank_depth: The number of documents that the reranker orders.
        output: What is compared of bge-m3: "dense" or "sparse".
        similarity: How vectors are compared: "cosine" or "dot".
        ignore_identical_ids: Drop a document whose id is that of the query, before the cut. Data such as ArguAna and
            QuoraRetrieval, whose queries are documents of the corpus, need it.
        name: The searcher's name in reports; `None`: made of its model's name.

    Returns:
        Means, figures of every query, and what was found.

    Raises:
        SettingsError: An argument is wrong, or the searcher returns an id or a text that is not in the corpus.
        BgeError: Embedding fails.
    """
    measures = [parse_metric(metric) for metric in dict.fromkeys(metrics)]
    if not measures:
        raise SettingsError("metrics is empty; name at least one, such as 'ndcg@10'.")
    for argument, value in (("depth", depth), ("rerank_depth", rerank_depth)):
        if value < 1:
            raise SettingsError(f"{argument}={value} leaves no documents; give at least 1.")
    deepest = max(measure.depth for measure in measures)
    before = [_counted(it) for it in (searcher, reranker)]
    start = time.perf_counter()
    run = _searched(searcher, data, max(depth, deepest), output, similarity, ignore_identical_ids=ignore_identical_ids)
    if reranker is not None:
        run = _reranked(run, data, reranker, rerank_depth)
    seconds = time.perf_counter() - start
    tokens, truncated = _difference(before, [_counted(it) for it in (searcher, reranker)])
    per_query = {
        measure.name: {query: measure.of(list(run.get(query, {})), data.qrels[query]) for query in data.queries}
        for measure in measures
    }
    settings = {
        "searcher": _described(searcher),
        "reranker": None if reranker is None else _described(reranker),
        "rerank_depth": None if reranker is None else rerank_depth,
        "output": output,
        "similarity": similarity,
        "ignore_identical_ids": ignore_identical_ids,
    }
    return RetrievalReport(
        name=name or _name(searcher, reranker),
        data=data.name,
        digest=data.digest,
        depth=depth,
        per_query=per_query,
        groups=dict(data.groups or {}),
        run=run,
        settings=settings,
        versions={package: version for package in _VERSIONS if (version := version_of(package))},
        seconds=seconds,
        tokens=tokens,
        truncated=truncated,
    )


def _searched(
    searcher: object | None,
    data: RetrievalData,
    depth: int,
    output: Output,
    similarity: Similarity,
    *,
    ignore_identical_ids: bool,
) -> Run:
    if searcher is not None:
        found = as_searcher(searcher, output=output, similarity=similarity)
        return found.search(data, depth, ignore_identical_ids=ignore_identical_ids)
    if data.candidates is None:
        raise SettingsError(f"searcher=None needs data with candidates, and {data.name} has none. Give a searcher.")
    return {
        query: {document: -float(place) for place, document in enumerate(dict.fromkeys(data.candidates.get(query, ())))}
        for query in data.queries
    }


def _reranked(run: Run, data: RetrievalData, reranker: object, depth: int) -> Run:
    """Orders the first documents of every query by the reranker's scores; the others stay behind them."""
    score: Callable[[str, list[str]], Any] = getattr(reranker, "score", reranker)  # type: ignore[arg-type]
    if not callable(score):
        raise SettingsError(f"reranker={reranker!r} has no method score, and is no function. Give a BgeReranker.")
    reranked: Run = {}
    for query, found in run.items():
        first, rest = list(found)[:depth], list(found)[depth:]
        scores = score(data.queries[query], [data.corpus[document] for document in first]) if first else []
        ordered = best_of(zip(first, map(float, scores), strict=True), query, depth, ignore_identical_ids=False)
        least = min(ordered.values(), default=0.0)
        reranked[query] = {**ordered, **{document: least - 1 - place for place, document in enumerate(rest)}}
    return reranked


def _held(it: object | None) -> Any:  # noqa: ANN401 - an encoder, or nothing
    """Returns the encoder or reranker of this package that an object is, or that an adapter holds."""
    for candidate in (it, *(getattr(it, name, None) for name in ("encoder", "reranker"))):
        if hasattr(candidate, "settings") and hasattr(candidate, "stats"):
            return candidate
    return None


def _counted(it: object | None) -> tuple[int, int] | None:
    held = _held(it)
    if held is None:
        return None
    stats = held.stats()
    return int(stats.tokens), int(stats.truncated_texts)


def _difference(
    before: Sequence[tuple[int, int] | None], after: Sequence[tuple[int, int] | None]
) -> tuple[int | None, int | None]:
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one is not None and other is not None]
    if not pairs:
        return None, None
    return sum(other[0] - one[0] for one, other in pairs), sum(other[1] - one[1] for one, other in pairs)


def _described(it: object | None) -> Mapping[str, Any]:
    held = _held(it)
    if held is None:
        return {"class": "candidates" if it is None else type(it).__name__}
    backend = held.backend
    instruction = held.instruction("query").prefix if hasattr(held, "instruction") else held.settings.query_instruction
    return {
        "class": type(it).__name__,
        "model": held.settings.model_name,
        "content": backend.identity,
        "engine": backend.engine.name,
        "precision": backend.request.precision,
        "device": backend.device,
        "max_length": held.max_length,
        "query_instruction": instruction,
    }


def _name(searcher: object | None, reranker: object | None) -> str:
    parts = []
    for it in (searcher, reranker):
        held = _held(it)
        if held is not None:
            precision = held.backend.request.precision
            model = str(held.settings.model_name).rstrip("/").rpartition("/")[2]
            parts.append(model if precision == "float32" else f"{model} {precision}")
        elif it is not None:
            parts.append(type(it).__name__)
    return " + ".join(parts) or "candidates"
