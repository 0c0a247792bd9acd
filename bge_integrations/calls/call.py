"""One call, from texts or pairs of texts to results. It works by slices, so memory does not grow with the corpus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import EngineOptions, Head, TextsRefused
from bge_integrations.backend.model.lookups import missing_embedding
from bge_integrations.backend.scheduler import Job, Priority, TextFailedError
from bge_integrations.backend.scheduler.telemetry import span
from bge_integrations.backend.text.templates import Share
from bge_integrations.backend.text.tokenizer import TokenizedTexts
from bge_integrations.calls.inputs import FEW_TEXTS
from bge_integrations.calls.lengths import LengthReport, Slice
from bge_integrations.calls.progress import Progress, warn_user
from bge_integrations.calls.waiting import Blocking, OnLoop, Waiter, run_blocking
from bge_integrations.errors import (
    DeviceMemoryError,
    EndpointError,
    EngineFailedError,
    MissingEmbeddingError,
    NonFiniteOutputError,
)
from bge_integrations.settings import ModelSettings

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel

# This many texts, sorted by length, need hardly any padding. Their tokenisation takes less than a second.
ITEMS_A_SLICE = 4096


Item = TypeVar("Item", str, tuple[str, str])
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

Slices = tuple[int | None, Iterator[list[Item]]]
"""The number of items, `None` if it is not known, and slices of the items."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a call that do not depend on its items or on the kind of results.

    Attributes:
        model: The loaded model.
        settings: The user's settings.
        max_length: Maximum number of tokens per item, special tokens included.
        priority: Interactive calls go before bulk calls and show no progress bar. `with_priority` goes before it.
        item: The word for an item in messages.
        first: Index of the first item, if this call is part of a larger call.
        whole: The report of the larger call, which warns and shows progress once for all its parts.
        separate_slices: Whether each slice has batches of its own.
    """

    model: LoadedModel
    settings: ModelSettings
    max_length: int
    priority: Priority
    item: str = "text"
    first: int = 0
    whole: LengthReport | None = None
    separate_slices: bool = False


class Output(Protocol[Result_co]):
    """Collects the results of a call."""

    def add(self, part: Slice[Any], found: NDArray[Any]) -> None:
        """Stores the results of the distinct items of a slice. Slices come in order."""
        ...

    def value(self) -> Result_co:
        """Returns the results of the call."""
        ...


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Item, Result]):
    """Takes texts, or pairs of texts, through tokenizer, queue and engine.

    Attributes:
        terms: The terms of the call.
        cut: Function that checks items and splits them into slices. It takes the items, the public method's name, and
            the size of a slice.
        tokenize: Function that turns distinct items into ids.
        output: Function that creates the collector of results. It takes the number of items; `None` if it is not known.
        head: The computation of results from an engine's rows.
        share: The share of each item's tokens that the user's texts cannot use.
        prompt_length: Leading tokens that pooling leaves out.
        options: Further inputs of the engine.
    """

    terms: Terms
    cut: Callable[[Iterable[Item], str, int], Slices[Item]]
    tokenize: Callable[[Sequence[Item]], TokenizedTexts]
    output: Callable[[int | None], Output[Result]]
    head: Head
    share: Share
    prompt_length: int = 0
    options: EngineOptions | None = None

    def run(self, items: Iterable[Item], method: str) -> Result:
        """Computes the results; see `compute`."""
        with call_span(method, self.terms.settings) as attributes:
            return run_blocking(self.compute(items, method, attributes, Blocking()))

    async def run_async(self, items: Iterable[Item], method: str) -> Result:
        """Does the same as `run` without blocking the event loop."""
        with call_span(method, self.terms.settings) as attributes:
            return await self.compute(items, method, attributes, OnLoop(items))

    async def compute(self, items: Iterable[Item], method: str, attributes: dict[str, int], waiter: Waiter) -> Result:
        """Computes the results. If the call is interrupted or cancelled, its queued texts are dropped.

        Args:
            items: The texts or pairs.
            method: Name of the public method, for messages.
            attributes: The attributes of the span. The call adds its counts to them.
            waiter: The way to wait.
        """
        terms, settings = self.terms, self.terms.settings
        self.share.check(settings, terms.max_length)
        count, slices = await waiter.run(partial(self.cut, items, method, ITEMS_A_SLICE))
        output = self.output(count)
        lengths = LengthReport(terms.max_length, settings.on_truncation, terms.item, self.share.instruction_tokens)
        tokenised = self._tokenised(slices, lengths)
        if settings.on_truncation == "error" and count is not None:
            # All lengths are checked first, so that nothing is computed in vain. Without a count, the texts may not all
            # fit into memory, and each slice is checked when its turn comes.
            tokenised = iter(await waiter.run(partial(list, tokenised)))
        # A thread that waits for a few texts and has nothing else to tokenise may compute them itself.
        may_lend = waiter.blocks and count is not None and count <= FEW_TEXTS
        is_shown = settings.show_progress and terms.priority == "bulk" and terms.whole is None
        queued: deque[_Queued] = deque()
        with Progress(count, shown=is_shown, unit=terms.item) as progress:
            try:
                while (part := await waiter.run(partial(next, tokenised, None))) is not None:
                    job = self._job(part, progress)
                    queued.append(_Queued(part, job))  # before `submit`, so that an interrupt in between cancels it
                    terms.model.scheduler.submit(job, settings.max_queued_texts, may_lend=may_lend)
                    # One slice is computed while the next one is tokenised.
                    if len(queued) > 1:
                        await self._collect(queued, output, waiter)
                lengths.add_to(attributes)
                lengths.count_for_caller()
                if terms.whole is not None:
                    terms.whole.include(lengths)
                else:
                    lengths.warn()
                while queued:
                    await self._collect(queued, output, waiter)
            finally:
                for given_up in queued:
                    terms.model.scheduler.cancel(given_up.job)
        return output.value()

    def _tokenised(self, slices: Iterator[list[Item]], lengths: LengthReport) -> Iterator[Slice[Item]]:
        start = self.terms.first
        for items in slices:
            part = Slice(start, items, self.tokenize)
            self._require_embeddings(part)
            part.cut = lengths.add(part)
            start += len(items)
            yield part

    def _require_embeddings(self, part: Slice[Item]) -> None:
        terms = self.terms
        missing = missing_embedding(part.tokens, terms.model.facts, terms.model.tokenizer)
        if missing is not None:
            index = part.first_index(np.array([missing.text]))
            raise MissingEmbeddingError(
                f"{terms.item.capitalize()} {index} can't be computed by {terms.settings.model_name}: it has "
                f"{missing.what}",
                index,
            )

    def _job(self, part: Slice[Item], progress: Progress) -> Job:
        def count(positions: NDArray[np.int64]) -> None:
            repeats = part.repeats[positions]
            progress.add(int(repeats.sum()), int(repeats @ part.tokens.lengths[positions]))

        return Job(
            part.tokens,
            self.head,
            priority=_chosen_priority.get() or self.terms.priority,
            prompt_length=self.prompt_length,
            options=self.options,
            batch_tokens=self.terms.settings.batch_tokens,
            max_texts=self.terms.settings.batch_size,
            shares_batches=not self.terms.separate_slices,
            truncated=part.cut,
            on_batch=count if progress.counts else None,
        )

    async def _collect(self, queued: deque[_Queued], output: Output[Result], waiter: Waiter) -> None:
        """Waits for the oldest slice and stores its results."""
        part, job = queued[0].part, queued[0].job
        try:
            found = await waiter.answer(job.answer)
        except TextFailedError as failure:
            raise self._named(failure, part) from failure.__cause__
        finally:
            for note in job.notes:
                warn_user(f"{self.terms.model.device} {note}", RuntimeWarning)
        queued.popleft()
        await waiter.run(partial(self._store, part, found, output))

    def _store(self, part: Slice[Any], found: NDArray[Any], output: Output[Result]) -> None:
        finite = self.head.is_finite(found)
        if not finite.all():
            first, settings = part.first_index(np.flatnonzero(~finite)), self.terms.settings
            if settings.endpoint is not None:
                raise NonFiniteOutputError(
                    f"{settings.endpoint} gave NaN or infinity for {self.terms.item} {first}. The server's model may "
                    "compute in float16, or be damaged.",
                    first,
                )
            raise NonFiniteOutputError(
                f"{settings.model_name} gave NaN or infinity for {self.terms.item} {first} (precision "
                f"{settings.precision!r}). With float16 try precision='bfloat16' or 'float32'; with float32 the "
                "checkpoint itself is damaged.",
                first,
            )
        output.add(part, found)

    def _named(self, failure: TextFailedError, part: Slice[Any]) -> Exception:
        """Returns the error that names the item on which the engine failed."""
        item, device = self.terms.item, self.terms.model.device
        index = part.first_index(np.array([failure.position]))
        which = f"{item.capitalize()} {index}, of {part.tokens.lengths[failure.position]} tokens,"
        cause = failure.__cause__
        if isinstance(cause, TextsRefused):
            return EndpointError(f"{which} is refused: {cause}", index, cause.status)
        if failure.out_of_memory:
            return DeviceMemoryError(
                f"{which} does not fit into the memory of {device} even alone ({failure.__cause__}). Set a smaller "
                "max_length, or run with device='cpu'.",
                index,
            )
        return EngineFailedError(
            f"{which} makes the engine fail even alone: {failure.__cause__!r}. If every {item} fails, try "
            "engine='sentence-transformers'.",
            index,
        )


@dataclass(frozen=True)
class _Queued:
    """A slice and its job."""

    part: Slice[Any]
    job: Job


@contextmanager
def with_priority(priority: Priority) -> Iterator[None]:
    """A block in which all calls have a priority, also calls that it awaits. Otherwise the method says it.

    A server needs this: a client may wait for texts that it sends without a side.
    """
    token = _chosen_priority.set(priority)
    try:
        yield
    finally:
        _chosen_priority.reset(token)


_chosen_priority: ContextVar[Priority | None] = ContextVar("bge_integrations_priority", default=None)


def call_span(method: str, settings: ModelSettings) -> AbstractContextManager[dict[str, int]]:
    """Wraps a public call in a span; see `telemetry.span`."""
    return span(f"bge.{method}", {"bge.model": settings.model_name})
