"""Exact search of the passages of every query, block by block, and the scores of chosen pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.held import held_by
from bge_integrations.evaluation.ranking import BestDocuments
from bge_integrations.evaluation.searchers import VectorSearcher, as_searcher
from bge_integrations.evaluation.vectors import Embed, Floats, unique_vectors
from bge_integrations.texts import kind_of

__all__ = ["Asked", "Embedders", "Found", "Wanted", "embedders", "search"]

Asked = tuple[str | None, str]
"""A prompt, or `None` for the encoder's own instruction, and a query."""

_BLOCK = 16384
"""Passages that are embedded before they are compared and forgotten."""
CHUNK = 1024
"""Queries that are compared with a block at once. A search always has the same chunks, so equal scores to the bit."""

_METHODS = ("encode_queries", "embed_documents", "get_text_embedding_batch")


@dataclass(frozen=True)
class Embedders:
    """How queries and passages become vectors.

    Attributes:
        queries: Function for queries with each prompt.
        documents: Function for passages.
        namespaces: Names that depend on all that the vectors depend on; `None`: not known.
    """

    queries: Mapping[str | None, Embed]
    documents: Embed
    namespaces: Sequence[str] | None


@dataclass(frozen=True)
class Wanted:
    """Pairs of a query and a passage whose scores are asked for.

    Attributes:
        excluded: Places of passages that the search must not return.
        others: Further places.
    """

    excluded: Sequence[int]
    others: Sequence[int] = ()


@dataclass(frozen=True)
class Found:
    """What was found for a query.

    Attributes:
        places: Places of passages, best first.
        scores: Their cosines.
        wanted: Cosines of the pairs asked for, by place.
    """

    places: Sequence[int]
    scores: Sequence[float]
    wanted: Mapping[int, float]


def embedders(encoder: object, prompts: Sequence[str | None], cache: EvaluationCache | None) -> Embedders:
    """Returns how an encoder embeds queries with some prompts, and passages.

    Raises:
        SettingsError: It is no encoder, or it can't have other prompts.
    """
    asked, read = _for_queries_and_passages(encoder)
    queries: dict[str | None, Embed] = {}
    names: list[str | None] = [_namespace(read, "document")]
    documents = _vectors(read, cache).documents
    for prompt in prompts:
        prompted = asked if prompt is None else _with_prompt(asked, prompt)
        queries[prompt] = _vectors(prompted, cache).queries
        names.append(_namespace(prompted, "query"))
    known = [name for name in names if name is not None]
    return Embedders(queries, documents, known if len(known) == len(names) else None)


def search(
    how: Embedders,
    chunks: Sequence[Sequence[Asked]],
    texts: Sequence[str],
    candidates: int,
    depth: int,
    wanted: Callable[[Asked], Wanted],
) -> list[list[Found]]:
    """Compares every query with every passage.

    Args:
        how: Embeds queries and passages.
        chunks: Prompts and queries, in chunks that are compared at once.
        texts: The passages.
        candidates: The number of passages that can be found, which come first.
        depth: The number of passages to find for a query.
        wanted: Returns the pairs whose scores are asked for.

    Returns:
        What was found, for each query of each chunk.
    """
    parts = [_Chunk(_query_vectors(how, chunk), [wanted(one) for one in chunk], depth) for chunk in chunks]
    starts = [*range(0, candidates, _BLOCK), *range(candidates, len(texts), _BLOCK)]
    for start, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        vectors = unit_rows(unique_vectors(how.documents, list(texts[start:end])))
        for part in parts:
            part.add(start, vectors, can_be_found=start < candidates)
    return [part.found() for part in parts]


class _Chunk:
    """The best passages of some queries so far."""

    def __init__(self, vectors: Floats, wanted: Sequence[Wanted], depth: int) -> None:
        self._vectors = vectors
        self._best = BestDocuments([str(row) for row in range(len(vectors))], depth, ignore_identical_ids=False)
        places = [np.array([*one.excluded, *one.others], dtype=np.int64) for one in wanted]
        excluded = [np.arange(len(some)) < len(one.excluded) for some, one in zip(places, wanted, strict=True)]
        rows = np.repeat(np.arange(len(wanted)), [len(some) for some in places])
        all_places = np.concatenate(places)
        order = np.argsort(all_places, kind="stable")
        self._rows, self._places = rows[order], all_places[order]
        self._is_excluded = np.concatenate(excluded)[order]
        self._scores = np.zeros(len(order), dtype=np.float32)

    def add(self, start: int, vectors: Floats, *, can_be_found: bool) -> None:
        scores: Floats = self._vectors @ vectors.T
        first, end = np.searchsorted(self._places, (start, start + len(vectors)))
        rows, places = self._rows[first:end], self._places[first:end] - start
        self._scores[first:end] = scores[rows, places]
        if can_be_found:
            excluded = self._is_excluded[first:end]
            scores[rows[excluded], places[excluded]] = -np.inf
            self._best.add(start, len(vectors), lambda some: scores[some])

    def found(self) -> list[Found]:
        wanted: list[dict[int, float]] = [{} for _ in self._vectors]
        for row, place, score in zip(self._rows.tolist(), self._places.tolist(), self._scores.tolist(), strict=True):
            wanted[row][place] = score
        return [
            Found(places[is_found].tolist(), scores[is_found].tolist(), its)
            for scores, places, its in zip(*self._best.best_places(), wanted, strict=True)
            for is_found in (scores > -np.inf,)
        ]


def _query_vectors(how: Embedders, chunk: Sequence[Asked]) -> Floats:
    rows: list[NDArray[np.float32] | None] = [None] * len(chunk)
    for prompt, embed in how.queries.items():
        places = [place for place, (its, _) in enumerate(chunk) if its == prompt]
        if places:
            vectors = unit_rows(unique_vectors(embed, [chunk[place][1] for place in places]))
            for place, vector in zip(places, vectors, strict=True):
                rows[place] = vector
    return np.stack([row for row in rows if row is not None])


def _for_queries_and_passages(encoder: object) -> tuple[Any, Any]:
    if hasattr(encoder, "dense_encoder"):  # bge-m3
        dense = encoder.dense_encoder()
        return dense, dense
    held = held_by(encoder)
    if isinstance(held, BgeEncoder):  # alone, or inside an adapter whose queries can have settings of their own
        return getattr(encoder, "query_encoder", held), held
    if isinstance(encoder, type) or not any(hasattr(encoder, method) for method in _METHODS):
        raise SettingsError(
            f"encoder={encoder!r} is {kind_of(encoder)}, which gives no vectors. Give a BgeEncoder, a BgeM3Encoder, or "
            "embeddings of LangChain or LlamaIndex."
        )
    return encoder, encoder


def _vectors(encoder: object, cache: EvaluationCache | None) -> VectorSearcher:
    searcher = as_searcher(encoder, cache=cache)
    assert isinstance(searcher, VectorSearcher)
    return searcher


def _namespace(encoder: object, role: str) -> str | None:
    name: str | None = encoder.cache_namespace(role) if hasattr(encoder, "cache_namespace") else None
    return name


def _with_prompt(encoder: object, prompt: str) -> BgeEncoder:
    if not isinstance(encoder, BgeEncoder):
        raise SettingsError(
            f"The data have rows with prompts of their own, such as {prompt!r}, which {kind_of(encoder)} can't use. "
            "Give a BgeEncoder."
        )
    spec = encoder.backend.spec
    if prompt and spec is not None and spec.query_template:
        return BgeEncoder.from_settings(encoder.settings.replace(query_instruction=None, task=prompt))
    return BgeEncoder.from_settings(encoder.settings.replace(query_instruction=prompt, task=None, examples=None))
