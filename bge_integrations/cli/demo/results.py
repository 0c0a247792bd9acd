"""What a run of the demo found out: plain figures, no formatting."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bge_integrations.cli.demo.corpus import Entry
from bge_integrations.cli.demo.frameworks import Hit

__all__ = ["Answered", "DemoReport", "ModelFacts", "SearchResult"]


@dataclass(frozen=True)
class ModelFacts:
    """The model in use.

    Attributes:
        name: Hub id, folder, or the package that the weights are from.
        device: Where it runs.
        precision: How it computes.
        engine: What runs it.
        dimension: Length of its vectors.
        query_instruction: Text put before each question, empty for none.
        is_fallback: Whether it stands in for the default model, which could not be had.
    """

    name: str
    device: str
    precision: str
    engine: str
    dimension: int
    query_instruction: str
    is_fallback: bool


@dataclass(frozen=True)
class Answered:
    """A question with what one search answered.

    Attributes:
        question: The question.
        expected: Names that count as right; empty for a question of the user's own.
        hits: The answers, best first.
        seconds: From the question to the answers, embedding and search included.
    """

    question: str
    expected: frozenset[str]
    hits: tuple[Hit, ...]
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """The answers' names, best first."""
        return tuple(hit.name for hit in self.hits)

    @property
    def rank(self) -> int | None:
        """Place of the first right answer, counted from 1; None if there is none."""
        return next((place for place, name in enumerate(self.names, start=1) if name in self.expected), None)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What one way of searching found, and how long it took.

    Attributes:
        name: "LangChain", "LlamaIndex" or "BM25".
        texts: How many passages were stored.
        tokens: How many tokens the model read; 0 where there is no model.
        embedding_seconds: Time that the model took for them; 0 where there is no model.
        storing_seconds: Time to store or index them.
        answered: The questions, in the order asked.
    """

    name: str
    texts: int
    tokens: int
    embedding_seconds: float
    storing_seconds: float
    answered: tuple[Answered, ...]

    @property
    def is_of_a_model(self) -> bool:
        """Whether a model embedded the passages."""
        return self.tokens > 0

    @property
    def texts_per_second(self) -> float:
        """Passages embedded in a second."""
        return self.texts / self.embedding_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens embedded in a second."""
        return self.tokens / self.embedding_seconds

    @property
    def median_query_seconds(self) -> float:
        """Median time of a question."""
        return statistics.median(answer.seconds for answer in self.answered)

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank of the first right answer, 0 where none was found."""
        return statistics.fmean(1 / answer.rank if answer.rank else 0.0 for answer in self.answered)

    def hit_rate(self, k: int) -> float:
        """Share of the questions with a right answer among the first `k`."""
        return statistics.fmean(answer.rank is not None and answer.rank <= k for answer in self.answered)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything that `bge demo` prints.

    Attributes:
        model: The model in use.
        one_model_in_memory: Whether both frameworks hold the very same loaded model.
        corpus_size: Entries in the whole corpus.
        entries: Those that were indexed.
        langchain: LangChain's part.
        llama_index: LlamaIndex's part.
        bm25: A search by words, for comparison; None for questions of the user's own, whose answers nobody knows.
    """

    model: ModelFacts
    one_model_in_memory: bool
    corpus_size: int
    entries: tuple[Entry, ...]
    langchain: SearchResult
    llama_index: SearchResult
    bm25: SearchResult | None

    @property
    def is_labelled(self) -> bool:
        """Whether the questions have known answers."""
        return self.bm25 is not None

    @property
    def results(self) -> tuple[SearchResult, ...]:
        """Every way of searching, in the order in which they are shown."""
        return (self.langchain, self.llama_index, *([self.bm25] if self.bm25 else []))

    @property
    def ranked_alike(self) -> int:
        """Number of questions for which both frameworks gave the same answers in the same order."""
        pairs = zip(self.langchain.answered, self.llama_index.answered, strict=True)
        return sum(one.names == other.names for one, other in pairs)

    @property
    def all_ranked_alike(self) -> bool:
        """Whether that is so for every question."""
        return self.ranked_alike == len(self.langchain.answered)
