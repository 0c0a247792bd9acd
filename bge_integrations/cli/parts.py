"""How `bge improve` divides the questions that it has made."""

from __future__ import annotations

from dataclasses import dataclass

from bge_integrations.errors import TrainingDataError
from bge_integrations.evaluation import RetrievalData
from bge_integrations.training import TrainingData, leakage
from bge_integrations.training.prose import counted
from bge_integrations.training.rows.data import SplitBy
from bge_integrations.training.verdict import held_out

__all__ = ["Parts", "divide"]

_VALIDATION, _TEST = 0.1, 0.2
_LEAST_QUESTIONS = 50
"""Fewer questions are not divided: parts of a few questions would say nothing."""


@dataclass(frozen=True)
class Parts:
    """The parts of the questions.

    Attributes:
        train: Questions to train on.
        validation: Questions to choose the checkpoint by; `None`: none.
        test: Questions to judge by; `None`: those of the user.
        words: How they were divided.
        shared: What the questions to judge by have in common with those to train on, in words.
    """

    train: TrainingData
    validation: RetrievalData | None
    test: RetrievalData | None
    words: str
    shared: str


def divide(data: TrainingData, own_test: RetrievalData | None) -> Parts:
    """Divides the questions before anything is mined, so that no passage of a held-out question is trained on.

    They are divided by document, or by passage where documents are not known or too few.

    Args:
        data: The questions.
        own_test: Questions of the user to judge by; `None`: a part of the made ones.

    Raises:
        TrainingDataError: There are too few to divide.
    """
    if len(data.rows) < _LEAST_QUESTIONS:
        if own_test is None:
            raise TrainingDataError(
                f"Only {counted(len(data.rows), 'question')} stay. A verdict on held-out questions needs "
                f"{_LEAST_QUESTIONS} or more: give more documents, or --test with questions of your own."
            )
        words = f"All are trained on, since they are few. {_about_own(own_test, data)}"
        return Parts(data, None, None, words, leakage(data, own_test).in_words())
    test = _TEST if own_test is None else 0.0
    by: SplitBy = "document"
    try:
        split = data.split(by=by, validation=_VALIDATION, test=test)
    except TrainingDataError:
        by = "passage"
        split = data.split(by=by, validation=_VALIDATION, test=test)
    validation, held = (None if part is None else held_out(part, data) for part in (split.validation, split.test))
    words = f"Divided by {by}: {len(split.train.rows):,} to train on"
    if validation is not None:
        words += f", {len(validation.queries):,} to choose the checkpoint by"
    if held is not None:
        words += f", and {len(held.queries):,} to judge by."
    elif own_test is not None:
        words += f", and your own to judge by. {_about_own(own_test, split.train)}"
    judged_by = held or own_test
    shared = "" if judged_by is None else leakage(split.train, judged_by).in_words()
    return Parts(split.train, validation, held, words, shared)


def _about_own(test: RetrievalData, train: TrainingData) -> str:
    """Says how many questions of the user's are about passages that other questions were made from."""
    known = {text for row in train.rows for text in row.pos}
    seen = sum(
        any(grade > 0 and test.corpus[id_] in known for id_, grade in grades.items()) for grades in test.qrels.values()
    )
    return f"Of your {counted(len(test.queries), 'question')}, {seen:,} are answered by passages that are trained on."
