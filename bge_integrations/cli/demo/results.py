"""What a run of the demo found out: plain figures, no formatting."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bge_integrations.cli.demo.corpus import Entry
from bge_integrations.cli.demo.frameworks import Hit
from bge_integrations.cli.demo.questions import Question
from bge_integrations.evaluation.metrics import parse_metric

__all__ = ["Answered", "DemoReport", "SearchResult"]

_FIRST = parse_metric("hit@1")


@dataclass(frozen=True)
class Answered:
    """A question with what one framework answered."""

    question: Question
    hits: tuple[Hit, ...]
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """The answers' names, best first."""
        return tuple(hit.name for hit in self.hits)

    @property
    def is_right(self) -> bool:
        """Whether the first answer is a right one."""
        return _FIRST.of(self.names, dict.fromkeys(self.question.answers, 1)) == 1


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What one framework found, and how long it took."""

    name: str
    embedding_seconds: float
    storing_seconds: float
    answered: tuple[Answered, ...]

    @property
    def median_question_seconds(self) -> float:
        """Median time of a question."""
        return statistics.median(answer.seconds for answer in self.answered)

    @property
    def right(self) -> int:
        """Number of first answers that are right."""
        return sum(answer.is_right for answer in self.answered)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything that `bge demo` prints at its end.

    Attributes:
        model: Hub id, folder, or the package that the weights are from.
        is_fallback: Whether it stands in for the default model, which could not be had.
        one_model_in_memory: Whether both frameworks hold the very same loaded model.
        is_labelled: Whether the questions are the demo's, with known answers.
        entries: What was indexed.
        tokens: How many tokens they have.
        langchain: LangChain's part.
        llama_index: LlamaIndex's part.
    """

    model: str
    is_fallback: bool
    one_model_in_memory: bool
    is_labelled: bool
    entries: tuple[Entry, ...]
    tokens: int
    langchain: SearchResult
    llama_index: SearchResult

    @property
    def results(self) -> tuple[SearchResult, SearchResult]:
        """Both frameworks' parts."""
        return self.langchain, self.llama_index

    @property
    def ranked_alike(self) -> int:
        """Number of questions for which both frameworks gave the same answers in the same order."""
        pairs = zip(self.langchain.answered, self.llama_index.answered, strict=True)
        return sum(one.names == other.names for one, other in pairs)
