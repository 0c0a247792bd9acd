"""Hard negatives by exact search."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.machine.versions import version_of
from bge_integrations.calls.progress import Progress
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.held import held_by, name_of
from bge_integrations.training.mining.choice import Chooser, MiningSettings, RowResult, Sampling
from bge_integrations.training.mining.part_file import PartFile
from bge_integrations.training.mining.pool import Corpus, Documents, Groups, Pool, make_pool
from bge_integrations.training.mining.report import MiningReport, make_report
from bge_integrations.training.mining.search import CHUNK, Asked, Embedders, Wanted, embedders, search
from bge_integrations.training.mining.words import require_words, search_words
from bge_integrations.training.rows.data import TrainingData, TrainingRow

__all__ = ["Mined", "mine_hard_negatives"]

_FORMAT = 1
"""Version of the key of part files. A change of this number makes every run start again."""
_SPARE = 64
"""Passages that are looked at beyond the window, since text rules leave some out."""


@dataclass(frozen=True)
class Mined:
    """What was mined.

    Attributes:
        data: The data with the negatives that were found behind those that were there.
        report: What was found and left out.
    """

    data: TrainingData
    report: MiningReport


def mine_hard_negatives(
    data: TrainingData,
    encoder: object,
    *,
    corpus: Corpus | None = None,
    documents: Documents | None = None,
    count: int = 7,
    ranks: tuple[int, int] = (2, 200),
    relative_margin: float | None = 0.05,
    absolute_margin: float | None = None,
    sampling: Sampling = "top",
    seed: int = 0,
    lexical: bool = False,
    cache: EvaluationCache | None = None,
    part: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Mined:
    """Finds passages that are near to each query and do not answer it.

    All passages are compared with all queries, by the cosine. Some passages are never negatives of a row:

    - positives of the row, and of other rows with an equal query (only case and white space may differ);
    - copies of such a positive, and near-duplicates (Jaccard similarity by shingles of three characters: 0.9 or more);
    - passages that contain such a positive, or are contained in it;
    - passages from the document of such a positive.

    The others have the ranks 1, 2, 3 and so on. Negatives that the row already has get no rank. The window applies
    first, then the margins.

    A row keeps the negatives that it has. New ones follow, nearest first, until there are `count`. If not enough are
    found, the row has fewer, and the report counts it. Rows with new negatives lose a teacher's scores: call
    `score_with_teacher` afterwards.

    Args:
        data: The rows. A row with a prompt of its own is searched with this prompt.
        encoder: A `BgeEncoder`, a `BgeM3Encoder` (its dense vectors), or embeddings of LangChain or LlamaIndex.
        corpus: Passages to choose from, as texts or texts by id; `None`: all passages of the data and its corpus.
        documents: The id of the document that a passage is from, or several ids, by the passage's text. The `document`
            of a row is that of its positives.
        count: The number of negatives of a row.
        ranks: The first and the last rank to choose from, counted from 1. The first are often unlabelled positives.
        relative_margin: A negative scores at most p - relative_margin * |p|, where p is the score of the row's lowest
            positive; `None`: no such limit. BGE's cosines are narrow, so that 0.05 can be much: see the report.
        absolute_margin: A negative scores at most p - absolute_margin. If both margins are given, both must hold.
        sampling: "top": the nearest. "random": any of the window; the choice depends on the seed and the texts only.
        seed: For "random".
        lexical: Whether every second negative comes from a search by words (BM25), with ranks of its own. The same
            rules, window and margins apply. It needs the package bm25s.
        cache: Keeps vectors of encoders of this package on disk while they are computed; `None`: nothing is kept.
        part: A file that keeps finished rows, so that an interrupted run can go on. It is used again only for equal
            model weights, settings, data and passages; other results are replaced. It stays at the end: remove it when
            the result is saved.
        show_progress: Whether to show a progress bar, for models of this package.

    Raises:
        SettingsError: An argument is wrong, `part` is a file of another kind, or it is given for an encoder without a
            `cache_namespace`.
        MissingExtraError: bm25s is not installed.
        OSError: `part` can't be read or written.
        BgeError: Embedding fails.
    """
    settings = MiningSettings(
        count=count,
        ranks=ranks,
        relative_margin=relative_margin,
        absolute_margin=absolute_margin,
        sampling=sampling,
        seed=seed,
        lexical=lexical,
    )
    if lexical:
        require_words()
    start = time.perf_counter()
    pool = make_pool(data, corpus, documents)
    how = embedders(encoder, list(dict.fromkeys(row.prompt for row in data.rows)), cache)
    if part is not None and how.namespaces is None:
        raise SettingsError(
            f"part={os.fspath(part)!r} needs an encoder with a cache_namespace, since results of another model must "
            "not be used. Give a BgeEncoder, or leave part out."
        )
    with PartFile(None if part is None else Path(part), _key(data, pool, settings, how)) as kept:
        run = _Run(data, pool, settings, how)
        total = len({(row.prompt, row.query) for row in data.rows}) + len(pool.texts)
        is_shown = show_progress and (held_by(encoder) is not None)
        with Progress(total, shown=is_shown, title="Embedding") as progress, progress.whole():
            run.mine(kept)
        results = [kept.results[number] for number in range(len(data.rows))]
    rows = [_with_negatives(row, result, pool.texts) for row, result in zip(data.rows, results, strict=True)]
    mined = dataclasses.replace(data, rows=rows)
    report = make_report(data, pool, results, settings, name_of(encoder, None), time.perf_counter() - start)
    return Mined(mined, report)


class _Run:
    """The search of all queries, and the choice of the negatives of all rows."""

    def __init__(self, data: TrainingData, pool: Pool, settings: MiningSettings, how: Embedders) -> None:
        self._rows = data.rows
        self._pool = pool
        self._settings = settings
        self._how = how
        self._groups = Groups(data.rows, pool)
        self._chooser = Chooser(pool, self._groups, settings)
        self._numbers: dict[Asked, list[int]] = {}
        for number, row in enumerate(data.rows):
            self._numbers.setdefault((row.prompt, row.query), []).append(number)
        self._words: Mapping[str, Sequence[int]] = {}

    def mine(self, kept: PartFile) -> None:
        """Finds the results of all rows that are not kept yet."""
        asked = list(self._numbers)
        chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
        chunks = [
            chunk
            for chunk in chunks
            if any(number not in kept.results for one in chunk for number in self._numbers[one])
        ]
        if not chunks:
            return
        pool, last = self._pool, self._settings.ranks[1]
        if self._settings.lexical:
            queries = {query: self._groups.excluded(query) for chunk in chunks for _, query in chunk}
            self._words = search_words(queries, pool.texts[: pool.candidates], last + _SPARE)
        most_given = max(len(row.neg) for row in self._rows)
        depth = min(last + _SPARE + most_given, pool.candidates)
        all_found = search(self._how, chunks, pool.texts, pool.candidates, depth, self._wanted)
        for chunk, found_of_chunk in zip(chunks, all_found, strict=True):
            for one, found in zip(chunk, found_of_chunk, strict=True):
                words = self._words.get(one[1], ())
                kept.add(
                    self._chooser.choose(number, self._rows[number], found, words)
                    for number in self._numbers[one]
                    if number not in kept.results
                )

    def _wanted(self, one: Asked) -> Wanted:
        excluded = self._groups.excluded(one[1])
        others = {self._pool.places[text]: None for number in self._numbers[one] for text in self._rows[number].neg}
        others.update(dict.fromkeys(self._words.get(one[1], ())))
        return Wanted(list(excluded), [place for place in others if place not in excluded])


def _with_negatives(row: TrainingRow, result: RowResult, texts: Sequence[str]) -> TrainingRow:
    if not result.negatives:
        return row
    negatives = (*row.neg, *(texts[one.place] for one in result.negatives))
    return dataclasses.replace(row, neg=negatives, pos_scores=None, neg_scores=None)


def _key(data: TrainingData, pool: Pool, settings: MiningSettings, how: Embedders) -> str:
    passages = hashlib.sha256()
    for place, text in enumerate(pool.texts):
        content = [text, place < pool.candidates, sorted(pool.documents.get(place, ()))]
        passages.update(json.dumps(content).encode() + b"\n")
    return key_of(
        {
            "format": _FORMAT,
            "model": how.namespaces,
            "settings": dataclasses.asdict(settings),
            "words": version_of("bm25s") if settings.lexical else None,
            "data": data.digest,
            "passages": passages.hexdigest(),
        }
    )
