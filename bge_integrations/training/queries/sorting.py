"""Sorts the questions of all answers: those that stay, and those that are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.training.mining.search import Embedders
from bge_integrations.training.queries.checks import Reason, Rules
from bge_integrations.training.queries.documents import Passage
from bge_integrations.training.queries.filters import Question, like_test, ranks, repeats
from bge_integrations.training.queries.kinds import QuestionKind
from bge_integrations.training.queries.prompts import Task
from bge_integrations.training.queries.report import Rejected
from bge_integrations.training.queries.settings import QuerySettings
from bge_integrations.training.queries.store import Kept
from bge_integrations.training.rows.data import TrainingData, TrainingRow

__all__ = ["Sorting"]


class Sorting:
    """Takes answers, then compares all questions.

    Attributes:
        questions: The questions that stay.
        rejected: The questions that are refused.
        made: The number of questions by kind, refused ones included.
        nothing: The number of prompts for which the model found nothing to ask.
    """

    def __init__(self, passages: Sequence[Passage], rules: Rules, kinds: Mapping[str, QuestionKind]) -> None:
        """Starts without questions."""
        self.questions: list[Question] = []
        self.rejected: list[Rejected] = []
        self.made = dict.fromkeys(kinds, 0)
        self.nothing = 0
        self._passages = passages
        self._rules = rules
        self._kinds = kinds

    def take(self, task: Task, kept: Kept) -> None:
        """Checks the answers to a prompt by their texts."""
        texts = [self._passages[place].text for place in task.passages]
        left = dict(task.wanted)
        for kind, query in (item for answer in kept.items for item in answer):
            self.made[kind] += 1
            question = Question(query, kind, task.passages)
            fault = self._rules.fault(query, self._kinds[kind], texts)
            if fault is None and left[kind] == 0:
                fault = "more", f"{task.wanted[kind]} asked for"
            if fault is None:
                left[kind] -= 1
                self.questions.append(question)
            else:
                self._reject(question, *fault)
        for malformed in kept.malformed:
            self._reject(Question("", "", task.passages), "form", malformed)
        if kept.faults and not kept.items:
            self._reject(Question("", "", task.passages), "answer", kept.faults[-1])
        self.nothing += not kept.items and not kept.faults

    def compare(
        self, settings: QuerySettings, how: Embedders | None, test: TrainingData | RetrievalData | None
    ) -> None:
        """Compares the questions with test questions, with each other, and with all passages."""
        if test is not None:
            self._refuse("test", like_test(self.questions, self._passages, test))
        same = repeats([one.query for one in self.questions], settings.examples, settings.near, how)
        self._refuse("duplicate", {place: f"{one.cosine:.3f} with {one.text!r}" for place, one in same.items()})
        if how is None or settings.rank is None:
            return
        found = ranks(self.questions, self._passages, how, settings.rank)
        behind = {place: rank for place, rank in enumerate(found) if rank is None or rank > settings.rank}
        words = {place: f"rank {rank}" if rank else "after all that were looked at" for place, rank in behind.items()}
        self._refuse("rank", words, behind)

    def rows(self) -> Iterator[TrainingRow]:
        """Yields a row for each question that stays."""
        numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        for one in self.questions:
            number = numbers[one.kind, one.passages] = numbers.get((one.kind, one.passages), 0) + 1
            passages = [self._passages[place] for place in one.passages]
            yield TrainingRow(
                one.query,
                tuple(passage.text for passage in passages),
                id=f"{'+'.join(passage.id for passage in passages)}/{one.kind}-{number}",
                # Rows with a common positive stay together in any case, so that the first document is enough.
                document=passages[0].document,
                source=one.kind,
            )

    def _refuse(
        self, reason: Reason, details: Mapping[int, str], found: Mapping[int, int | None] | None = None
    ) -> None:
        for place, detail in details.items():
            self._reject(self.questions[place], reason, detail, (found or {}).get(place))
        self.questions = [one for place, one in enumerate(self.questions) if place not in details]

    def _reject(self, question: Question, reason: Reason, detail: str, rank: int | None = None) -> None:
        ids = tuple(self._passages[place].id for place in question.passages)
        self.rejected.append(Rejected(question.query, question.kind, ids, reason, detail, rank))
