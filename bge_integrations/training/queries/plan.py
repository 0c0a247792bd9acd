"""What will be asked of a chat model, and what came of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.calls.progress import Progress
from bge_integrations.errors import TrainingDataError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.held import held_by, name_of
from bge_integrations.training.mining.search import embedders
from bge_integrations.training.queries.asking import Asking, on_own_loop
from bge_integrations.training.queries.chat import as_chat
from bge_integrations.training.queries.checks import REASONS, Rules
from bge_integrations.training.queries.documents import Passages, hashed, read_passages
from bge_integrations.training.queries.estimate import Estimate, estimate
from bge_integrations.training.queries.groups import plan_tasks
from bge_integrations.training.queries.prompts import Task
from bge_integrations.training.queries.report import Failed, QueryReport, Rejected, some_of_each, spread
from bge_integrations.training.queries.settings import QuerySettings
from bge_integrations.training.queries.sorting import Sorting
from bge_integrations.training.queries.store import AnswerStore
from bge_integrations.training.rows.data import TrainingData, TrainingRow

__all__ = ["MadeQueries", "QueryOptions", "QueryPlan"]

_FORMAT = "1"
"""Version of the key of kept answers. A change of it makes every run ask again."""
_FAILURES_SHOWN = 3


@dataclass(frozen=True)
class MadeQueries:
    """Questions that were made from documents.

    Attributes:
        data: The questions with their passages, to mine negatives for and to train on. The `source` of a row is its
            kind. The corpus of the data has all passages.
        documents: The document of each passage that has one, by the passage's text, for `mine_hard_negatives`.
        rejected: Questions that were refused, each with the reason.
        failed: Passages that the chat model gave no answer for.
        report: What came of it in figures and words.
    """

    data: TrainingData
    documents: Mapping[str, str]
    rejected: tuple[Rejected, ...]
    failed: tuple[Failed, ...]
    report: QueryReport


class QueryOptions(TypedDict, total=False):
    """What questions are made with, beside the documents and the chat model.

    Attributes:
        encoder: The model that training starts from: a `BgeEncoder`, a `BgeM3Encoder`, or embeddings of LangChain or
            LlamaIndex. `None`: nothing is compared by vectors, and the report says so.
        settings: What is asked for, and how the answers are checked; `None`: the defaults.
        test: Questions to judge by later. A made question that shares five words in a row with one of them is refused.
        cache: Keeps vectors of encoders of this package on disk; `None`: nothing is kept.
        part: A file that keeps the answers. They are used again for equal passages, prompts and chat models. The file
            stays at the end.
        show_progress: Whether to show progress bars.
    """

    encoder: object | None
    settings: QuerySettings | None
    test: TrainingData | RetrievalData | None
    cache: EvaluationCache | None
    part: str | os.PathLike[str] | None
    show_progress: bool


class QueryPlan:
    """What will be asked of a chat model. Nothing is asked before `run`.

    Attributes:
        passages: The passages.
        estimate: How many calls it takes, about how many tokens, and what is kept from an earlier run.
    """

    def __init__(
        self,
        documents: object,
        llm: object,
        *,
        encoder: object | None = None,
        settings: QuerySettings | None = None,
        test: TrainingData | RetrievalData | None = None,
        cache: EvaluationCache | None = None,
        part: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> None:
        """Reads the documents and the kept answers, and writes the prompts.

        Args:
            documents: See `make_queries`.
            llm: See `make_queries`.
            encoder: See `QueryOptions`, as for the rest.
            settings: As above.
            test: As above.
            cache: As above.
            part: As above.
            show_progress: As above.

        Raises:
            SettingsError: An argument is wrong, or `part` is a file of another kind.
            TrainingDataError: The documents have no text.
            OSError: `part` can't be read.
            BgeError: Embedding fails.
        """
        self._start = time.perf_counter()
        self._settings = settings or QuerySettings()
        self._chat = as_chat(llm, self._settings.llm_name)
        self.passages: Passages = read_passages(documents)
        self._encoder = encoder
        self._how = None if encoder is None else embedders(encoder, [None], cache)
        self._test = test
        self._store = AnswerStore(None if part is None else Path(part).expanduser())
        self._shows_progress = show_progress
        kinds = self._settings.wanted()
        needs_vectors = any(kind.passages > 1 for kind in kinds) and (
            self._settings.together == "near" or any(passage.document is None for passage in self.passages.all)
        )
        with self._embedding(None, shown=needs_vectors):
            self._planned = plan_tasks(self.passages.all, self._settings, self._how)
        self._tasks = {hashed(_FORMAT, self._chat.name, task.prompt): task for task in self._planned.tasks}
        self.estimate: Estimate = estimate(list(self._open().values()), len(self._tasks), self._settings)
        self._kinds = {kind.name: kind for kind in kinds}
        self._rules = Rules(self._settings.language, self._settings.copied_words, self._settings.examples)

    def run(self, *, asks: bool = True) -> MadeQueries:
        """Asks, checks and compares. See `make_queries`.

        Args:
            asks: Whether the chat model is asked; `False`: only kept answers are taken.
        """
        asking = self._asking()
        if asks:
            with self._store:
                on_own_loop(partial(asking.all, self._open(), self._store, show_progress=self._shows_progress))
        return self._finish(asking)

    async def arun(self) -> MadeQueries:
        """Asks on the running event loop, and checks and compares in a thread. See `amake_queries`."""
        asking = self._asking()
        with self._store:
            await asking.all(self._open(), self._store, show_progress=self._shows_progress)
        return await in_thread(partial(self._finish, asking), own=True)

    def _open(self) -> dict[str, Task]:
        return {key: task for key, task in self._tasks.items() if key not in self._store.kept}

    @contextmanager
    def _embedding(self, texts: int | None, *, shown: bool = True) -> Iterator[None]:
        """A block with a progress bar, if it embeds texts with a model of this package."""
        is_shown = shown and self._shows_progress and held_by(self._encoder) is not None
        with Progress(texts, shown=is_shown, title="Embedding") as progress, progress.whole():
            yield

    def _asking(self) -> Asking:
        return Asking(self._chat, self._settings, self._rules, self._kinds, self.passages.all)

    def _finish(self, asking: Asking) -> MadeQueries:
        sorting = Sorting(self.passages.all, self._rules, self._kinds)
        for key, task in self._tasks.items():
            kept = self._store.kept.get(key)
            if kept is not None:
                sorting.take(task, kept)
        with self._embedding(len(sorting.questions) + len(self.passages.all)):
            sorting.compare(self._settings, self._how, self._test)
        rows = list(sorting.rows())
        report = self._report(asking, sorting, rows)
        if not rows:
            first = f" The first: {sorting.rejected[0].in_words()}" if sorting.rejected else ""
            raise TrainingDataError(f"No question stays. {' '.join(report.sentences())}{first}")
        data = TrainingData(rows, "questions", self.passages.corpus)
        return MadeQueries(data, self.passages.documents, tuple(sorting.rejected), tuple(asking.failed), report)

    def _report(self, asking: Asking, sorting: Sorting, rows: list[TrainingRow]) -> QueryReport:
        refused = Counter(one.reason for one in sorting.rejected)
        return QueryReport(
            llm=self._chat.name,
            encoder=None if self._encoder is None else name_of(self._encoder, None),
            settings=self._settings.to_dict(),
            passages=len(self.passages.all),
            blank=self.passages.blank,
            repeated=self.passages.repeated,
            short=self._planned.short,
            alone=self._planned.alone,
            tasks=len(self._tasks),
            kept=self.estimate.kept,
            calls=asking.caller.calls,
            unusable=asking.unusable,
            nothing=sorting.nothing,
            made={kind: count for kind, count in sorting.made.items() if count},
            data=dict(Counter(row.source for row in rows)),
            rejected={reason: refused[reason] for reason in REASONS if refused[reason]},
            failed=len(asking.failed),
            covered=len({text for row in rows for text in row.pos}),
            samples=spread(rows),
            refused=some_of_each(sorting.rejected),
            failures=asking.failed[:_FAILURES_SHOWN],
            seconds=time.perf_counter() - self._start,
        )
