"""Judges a trained model: is it better on held-out questions, and what has it forgotten?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.encoder import BgeEncoder
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.rows.data import TrainingData

__all__ = ["Probe", "Verdict", "by_group", "held_out", "is_better", "judge", "plain", "probe"]

_METRIC = "ndcg@10"
_NEIGHBOURS = 10
_FORGETS = 0.5
"""A part of kept neighbours below this is told as forgetting."""


@dataclass(frozen=True)
class Probe:
    """How much of the start's view of general texts is left. It needs no labels.

    Attributes:
        texts: The number of texts.
        neighbours: The mean part of a text's ten nearest texts that both models share.
        correlation: The rank correlation of both models' cosines over all pairs.
    """

    texts: int
    neighbours: float
    correlation: float

    @property
    def has_forgotten(self) -> bool:
        """Whether less than half of the neighbours are left."""
        return self.neighbours < _FORGETS

    def in_words(self) -> str:
        """Says what is left."""
        said = (
            f"Of the ten nearest neighbours of {self.texts} general texts, {self.neighbours:.0%} are the same as "
            f"before (rank correlation of the cosines {self.correlation:.2f})."
        )
        if self.has_forgotten:
            said += (
                " The model has changed a lot on texts like these; lower the learning rate, or merge it with its start."
            )
        return said


@dataclass(frozen=True)
class Verdict:
    """What a training changed.

    Attributes:
        before: The start on the held-out questions.
        after: The trained model on them.
        comparison: Their paired comparison.
        probe: What is left on general texts; `None` for a model without vectors.
        general: The comparison on labelled general data; `None` without them.
        groups: nDCG@10 before and after by group of questions.
    """

    before: RetrievalReport
    after: RetrievalReport
    comparison: Comparison
    probe: Probe | None = None
    general: Comparison | None = None
    groups: dict[str, tuple[float, float]] = field(default_factory=dict)

    def in_words(self) -> str:
        """Says whether the model is better, and what else has to be known."""
        sentences = [self.comparison.in_words()]
        if not is_better(self.comparison):
            sentences.append("So these questions do not show that the training helped.")
        if self.probe is not None:
            sentences.append(self.probe.in_words())
        if self.general is not None:
            sentences.append(f"General data: {self.general.in_words()}")
        sentences.append("Vectors that the start has stored do not fit the new model: embed the documents again.")
        return " ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "before": self.before.metrics,
            "after": self.after.metrics,
            "comparison": plain(self.comparison),
            "groups": {group: list(values) for group, values in self.groups.items()},
            "probe": None if self.probe is None else asdict(self.probe),
            "general": None if self.general is None else {"difference": self.general.difference, "p": self.general.p},
        }


def is_better(comparison: Comparison) -> bool:
    """Returns whether a comparison shows that the candidate is better."""
    return comparison.difference > 0 and comparison.is_significant


def plain(comparison: Comparison) -> dict[str, Any]:
    """Returns plain data for JSON, without the differences of the queries."""
    return {key: value for key, value in comparison.to_dict().items() if key != "differences"}


def held_out(part: TrainingData, everything: TrainingData) -> RetrievalData:
    """Returns a part's questions with all passages of the data as the corpus, so that finding the right one is hard."""
    corpus = dict(everything.corpus or {})
    known = set(corpus.values())
    corpus |= {f"passage-{number}": text for number, text in enumerate(everything.passages()) if text not in known}
    return TrainingData(part.rows, part.name, corpus).as_retrieval_data()


def judge(
    start: str | os.PathLike[str] | EncoderSettings,
    tuned: str | os.PathLike[str],
    data: RetrievalData,
    *,
    general: RetrievalData | None = None,
    texts: Sequence[str] | None = None,
    cache: EvaluationCache | None = None,
) -> Verdict:
    """Compares a trained model with its start.

    Args:
        start: Hub id or folder of the start, or settings of it.
        tuned: The trained folder.
        data: Questions that were not trained on.
        general: Labelled data of another kind, to see what is forgotten.
        texts: General texts for the probe; `None`: the package's own, which are everyday questions and passages.
        cache: Keeps vectors for the next judgement.

    Raises:
        BgeError: A model can't be loaded.
    """
    settings = EncoderSettings.of(start)
    trained = EncoderSettings(model_name=os.fspath(tuned), device=settings.device, on_truncation="ignore")
    with (
        BgeEncoder.from_settings(settings.replace(on_truncation="ignore")) as before,
        BgeEncoder.from_settings(trained) as after,
    ):
        reports = _reports(before, after, data, cache)
        of_general = None if general is None else compare(*_reports(before, after, general, cache), _METRIC)
        found = probe(before, after, texts)
    before_all, after_all = reports
    return Verdict(
        before_all, after_all, compare(*reports, _METRIC), found, of_general, by_group(before_all, after_all)
    )


def by_group(before: RetrievalReport, after: RetrievalReport) -> dict[str, tuple[float, float]]:
    """Returns nDCG@10 before and after by group of questions; {} without groups."""
    one, other = before.by_group(_METRIC), after.by_group(_METRIC)
    return {group: (one[group], other[group]) for group in one}


def _reports(
    before: BgeEncoder, after: BgeEncoder, data: RetrievalData, cache: EvaluationCache | None
) -> tuple[RetrievalReport, RetrievalReport]:
    return (
        evaluate_retrieval(before, data, depth=100, cache=cache, name="the start"),
        evaluate_retrieval(after, data, depth=100, cache=cache, name="the trained model"),
    )


def probe(before: BgeEncoder, after: BgeEncoder, texts: Sequence[str] | None = None) -> Probe:
    """Compares how two models see general texts."""
    if texts is None:
        content = (files("bge_integrations") / "data" / "calibration.txt").read_text(encoding="utf-8")
        texts = [line for line in content.splitlines() if line.strip()]
    chosen = list(dict.fromkeys(texts))
    cosines = [_cosines(encoder.encode(chosen)) for encoder in (before, after)]
    nearest = [np.argsort(-one, axis=1, kind="stable")[:, :_NEIGHBOURS] for one in cosines]
    shared = [len(set(one) & set(other)) for one, other in zip(*(part.tolist() for part in nearest), strict=True)]
    upper = np.triu_indices(len(chosen), 1)
    ranks = [np.argsort(np.argsort(one[upper], kind="stable"), kind="stable") for one in cosines]
    return Probe(
        len(chosen),
        float(np.mean(shared)) / min(_NEIGHBOURS, len(chosen) - 1),
        float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
    )


def _cosines(vectors: Floats) -> Floats:
    unit = unit_rows(vectors)
    cosines: Floats = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
