"""Judges a trained reranker: does it order what an embedding model finds better than that model itself?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bge_integrations.encoder import BgeEncoder
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.reranker import BgeReranker
from bge_integrations.settings import EncoderSettings, RerankerSettings
from bge_integrations.training.verdict import Verdict, by_group, is_better, plain

__all__ = ["RerankerVerdict", "judge_reranker"]

_METRIC = "ndcg@10"
_DEPTH = 100


@dataclass(frozen=True)
class RerankerVerdict(Verdict):
    """What a reranker changes. `before` is the embedding model's ranking, `after` the same candidates in another order.

    Attributes:
        from_start: The comparison with the reranker that it was trained from; `None` if that was no reranker.
        reach: How many questions have an answer among their candidates.
    """

    from_start: Comparison | None = None
    reach: int = 0

    def in_words(self) -> str:
        """Says whether the reranker helps, and whether the training did."""
        sentences = [self.comparison.in_words()]
        if not is_better(self.comparison):
            sentences.append("So these questions do not show that the reranker helps.")
        sentences.append(
            f"An answer is among the candidates of {self.reach} of {len(self.comparison.differences)} questions; a "
            "reranker can't help the others."
        )
        if self.from_start is not None:
            sentences.append(self.from_start.in_words())
            if not is_better(self.from_start):
                sentences.append("So these questions do not show that the training helped.")
        if self.general is not None:
            sentences.append(f"General data: {self.general.in_words()}")
        return " ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        from_start = None if self.from_start is None else plain(self.from_start)
        return {**super().to_dict(), "from_start": from_start, "reach": self.reach}


def judge_reranker(
    tuned: str | os.PathLike[str],
    data: RetrievalData,
    embedder: str | os.PathLike[str] | EncoderSettings,
    *,
    start: str | os.PathLike[str] | RerankerSettings | None = None,
    candidates: int = 100,
    general: RetrievalData | None = None,
    cache: EvaluationCache | None = None,
) -> RerankerVerdict:
    """Compares an embedding model's ranking with the same candidates in the order of a trained reranker.

    Args:
        tuned: The trained folder.
        data: Questions that were not trained on.
        embedder: Hub id or folder of the embedding model that finds the candidates, or settings of it.
        start: The reranker that training started from, which is compared too; `None` if it started from another model.
        candidates: Documents of each query that are reranked.
        general: Labelled data of another kind.
        cache: Keeps vectors and scores for the next judgement.

    Raises:
        BgeError: A model can't be loaded.
    """
    finds = EncoderSettings.of(embedder)
    named = {"the trained reranker": RerankerSettings(model_name=os.fspath(tuned), device=finds.device)}
    if start is not None:
        given = RerankerSettings.of(start)
        named["the reranker that it was trained from"] = given
    with ExitStack() as stack:
        encoder = stack.enter_context(BgeEncoder.from_settings(finds.replace(on_truncation="ignore")))
        rerankers = {
            name: stack.enter_context(BgeReranker.from_settings(settings.replace(on_truncation="ignore")))
            for name, settings in named.items()
        }
        before, after, *of_start = _reports(encoder, rerankers, data, candidates, cache)
        of_general = None
        if general is not None:
            one, other, *_ = _reports(encoder, rerankers, general, candidates, cache)
            of_general = compare(one, other, _METRIC)
    return RerankerVerdict(
        before,
        after,
        compare(before, after, _METRIC),
        general=of_general,
        groups=by_group(before, after),
        from_start=compare(of_start[0], after, _METRIC) if of_start else None,
        reach=_reach(before, data, candidates),
    )


def _reports(
    encoder: BgeEncoder,
    rerankers: Mapping[str, BgeReranker],
    data: RetrievalData,
    candidates: int,
    cache: EvaluationCache | None,
) -> list[RetrievalReport]:
    """Returns the report of an encoder, and one of each reranker, by name, that orders what the encoder has found."""
    depth = max(_DEPTH, candidates)
    found = evaluate_retrieval(encoder, data, depth=depth, cache=cache, name="the embedder's ranking")
    return [
        found,
        *(
            evaluate_retrieval(found, data, depth=depth, reranker=one, rerank_depth=candidates, cache=cache, name=name)
            for name, one in rerankers.items()
        ),
    ]


def _reach(report: RetrievalReport, data: RetrievalData, candidates: int) -> int:
    """Returns how many queries have a relevant document among their candidates."""
    return sum(
        any(data.qrels[query].get(document, 0) > 0 for document in list(found)[:candidates])
        for query, found in report.run.items()
    )
