"""The calls of a run: some at once, each answer kept when it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket
from bge_integrations.calls.progress import Progress
from bge_integrations.training.queries.answers import UnusableAnswerError, read_answer
from bge_integrations.training.queries.chat import Chat
from bge_integrations.training.queries.checks import REASONS, Rules
from bge_integrations.training.queries.documents import Passage
from bge_integrations.training.queries.estimate import tokens_of
from bge_integrations.training.queries.failures import Caller, CallFailedError
from bge_integrations.training.queries.kinds import QuestionKind
from bge_integrations.training.queries.prompts import Task, again
from bge_integrations.training.queries.report import Failed
from bge_integrations.training.queries.settings import QuerySettings
from bge_integrations.training.queries.store import AnswerStore, Kept

__all__ = ["Asking", "on_own_loop"]

Result = TypeVar("Result")


class Asking:
    """Asks a chat model."""

    def __init__(
        self,
        chat: Chat,
        settings: QuerySettings,
        rules: Rules,
        kinds: Mapping[str, QuestionKind],
        passages: Sequence[Passage],
    ) -> None:
        """Takes what every call needs."""
        self.caller = Caller(chat, settings)
        self.failed: list[Failed] = []
        self.unusable = 0
        self._settings = settings
        self._rules = rules
        self._kinds = kinds
        self._passages = passages

    async def all(self, tasks: Mapping[str, Task], store: AnswerStore, *, show_progress: bool) -> None:
        """Asks for everything.

        Raises:
            ChatModelError: The chat model fails on one passage after the other.
            OSError: An answer can't be written.
        """
        waiting = iter(tasks.items())
        with Progress(len(tasks), shown=show_progress, unit="prompt", title="Asking") as progress:
            workers = [
                asyncio.ensure_future(self._work(waiting, store, progress))
                for _ in range(min(self._settings.concurrency, len(tasks)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, waiting: Iterator[tuple[str, Task]], store: AnswerStore, progress: Progress) -> None:
        for key, task in waiting:
            kept = await self._answers(task)
            if kept is not None:
                store.add(key, kept)
                answered = "".join(query for answer in kept.items for _, query in answer)
                progress.add(1, tokens_of(task.prompt) + tokens_of(answered))

    async def _answers(self, task: Task) -> Kept | None:
        try:
            return await self._ask(task)
        except CallFailedError as error:
            self.failed.append(Failed(tuple(self._passages[place].id for place in task.passages), str(error)))
            self.caller.note(error)
        return None

    async def _ask(self, task: Task) -> Kept:
        """Asks until an answer has at least one question that passes the checks of its text."""
        kept = Kept()
        prompt = task.prompt
        for _ in range(self._settings.answers):
            reason = self._take(await self.caller.answer(prompt), task, kept)
            if reason is None:
                break
            self.unusable += 1
            prompt = again(task, reason)
        return kept

    def _take(self, text: str, task: Task, kept: Kept) -> str | None:
        """Keeps what an answer has, and returns why it has to be asked for again, or `None`."""
        try:
            answer = read_answer(text, task.wanted)
        except UnusableAnswerError as error:
            kept.faults.append(str(error))
            return str(error)
        if not answer.items:
            return None
        kept.items.append(answer.items)
        kept.malformed.extend(answer.faults)
        texts = [self._passages[place].text for place in task.passages]
        found = [self._rules.fault(query, self._kinds[kind], texts) for kind, query in answer.items]
        reasons = dict.fromkeys(f"{REASONS[fault[0]]}: {fault[1]}" for fault in found if fault is not None)
        return f"each search in it is refused ({'; '.join(reasons)})." if None not in found else None


def on_own_loop(make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs a coroutine on an event loop of its own in another thread, and ends it if this thread is interrupted."""
    ticket: Ticket[Result] = Ticket()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def run() -> Result:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await make()

    def work() -> None:
        ticket.give(Outcome.of(partial(copied.run, lambda: asyncio.run(run()))))

    copied = copy_context()
    try:
        threading.Thread(target=work, name="bge-questions", daemon=True).start()
        return ticket.wait()
    except BaseException:
        for loop, task in running:
            with suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)
        raise
