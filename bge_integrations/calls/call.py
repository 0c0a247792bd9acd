"""One call, from texts or pairs of texts to results. It works by slices, so memory does not grow with the corpus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import EngineOptions, Head, TextsRefused
from bge_integrations.backend.model.lookups import missing_embedding
from bge_integrations.backend.scheduler import Job, Priority, TextFailedError, Unread
from bge_integrations.backend.scheduler.telemetry import span
from bge_integrations.backend.text.templates import Frame, Share
from bge_integrations.backend.text.tokenizer import TokenizedTexts
from bge_integrations.calls.inputs import FEW_TEXTS, are_short, check_texts
from bge_integrations.calls.lengths import LengthReport, Slice
from bge_integrations.calls.progress import Progress, counts_for_another, warn_user
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


@dataclass(frozen=True)
class Few:
    """The way of few short texts, whose results are rows of an array.

    Attributes:
        frame: What surrounds and limits the texts.
        head: The computation of the rows that the caller gets. A row that is not finite has NaN in its first place.
    """

    frame: Frame
    head: Head


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
        few: The way of few short texts; `None` if they go in slices as all others do.
    """

    terms: Terms
    cut: Callable[[Iterable[Item], str, int], Slices[Item]]
    tokenize: Callable[[Sequence[Item]], TokenizedTexts]
    output: Callable[[int | None], Output[Result]]
    head: Head
    share: Share
    prompt_length: int = 0
    options: EngineOptions | None = None
    few: Few | None = None

    def run(self, items: Iterable[Item], method: str) -> Result:
        """Computes the results; see `compute`."""
        with call_span(method, self.terms.settings) as attributes:
            texts = self._few_texts(items, method)
            if texts is not None:
                return run_blocking(self._compute_few(texts, attributes, Blocking()))
            return run_blocking(self.compute(items, method, attributes, Blocking()))

    async def run_async(self, items: Iterable[Item], method: str) -> Result:
        """Does the same as `run` without blocking the event loop."""
        with call_span(method, self.terms.settings) as attributes:
            texts = self._few_texts(items, method)
            if texts is not None:
                return await self._compute_few(texts, attributes, OnLoop())
            return await self.compute(items, method, attributes, OnLoop(items))

    def _few_texts(self, items: Iterable[Any], method: str) -> _FewTexts | None:
        """Checks few short texts; `None` for other items, and for texts whose progress is shown."""
        terms, few = self.terms, self.few
        if few is None or terms.separate_slices or terms.whole is not None or not are_short(items):
            return None
        if (terms.settings.show_progress and terms.priority == "bulk") or counts_for_another():
            return None
        self.share.check(terms.settings, terms.max_length)
        texts = check_texts(items, method)
        return _FewTexts(self, few, texts) if texts else None

    async def _compute_few(self, texts: _FewTexts, attributes: dict[str, int], waiter: Waiter) -> Result:
        """Computes few texts. The engine's thread tokenises them, together with those of other callers."""
        scheduler, part = self.terms.model.scheduler, texts.part
        job = self._job(texts, texts.head)
        try:
            scheduler.submit(job, self.terms.settings.max_queued_texts, may_lend=waiter.blocks)
            found = await self._answer(job, part, waiter)
        finally:
            if not job.is_over:
                scheduler.cancel(job)
        if any(map(isnan, found[:, 0].tolist())):
            self._require_finite(part, ~np.isnan(found[:, 0]))
        self._report(texts.lengths, attributes)
        texts.lengths.warn()
        return cast("Result", found if part.is_distinct else found[part.inverse])

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
        lengths = self.lengths()
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
                    job = self._job_of_slice(part, progress)
                    queued.append(_Queued(part, job))  # before `submit`, so that an interrupt in between cancels it
                    terms.model.scheduler.submit(job, settings.max_queued_texts, may_lend=may_lend)
                    # One slice is computed while the next one is tokenised.
                    if len(queued) > 1:
                        await self._collect(queued, output, waiter)
                self._report(lengths, attributes)
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

    def lengths(self) -> LengthReport:
        """Returns an empty report."""
        settings = self.terms.settings
        return LengthReport(
            self.terms.max_length, settings.on_truncation, self.terms.item, self.share.instruction_tokens
        )

    @staticmethod
    def _report(lengths: LengthReport, attributes: dict[str, int]) -> None:
        lengths.add_to(attributes)
        lengths.count_for_caller()

    def _tokenised(self, slices: Iterator[list[Item]], lengths: LengthReport) -> Iterator[Slice[Item]]:
        start = self.terms.first
        for items in slices:
            part = Slice(start, items)
            part.take_over(self.tokenize(part.distinct))
            self.require_embeddings(part)
            part.cut = lengths.add(part)
            start += len(items)
            yield part

    def require_embeddings(self, part: Slice[Any]) -> None:
        """Raises `MissingEmbeddingError` if the model has no embedding for a token."""
        terms = self.terms
        missing = missing_embedding(part.tokens, terms.model.facts, terms.model.tokenizer)
        if missing is not None:
            index = part.first_index(np.array([missing.text]))
            raise MissingEmbeddingError(
                f"{terms.item.capitalize()} {index} can't be computed by {terms.settings.model_name}: it has "
                f"{missing.what}",
                index,
            )

    def _job_of_slice(self, part: Slice[Item], progress: Progress) -> Job:
        def count(positions: NDArray[np.int64]) -> None:
            repeats = part.repeats[positions]
            progress.add(int(repeats.sum()), int(repeats @ part.tokens.lengths[positions]))

        return self._job(part.tokens, self.head, truncated=part.cut, on_batch=count if progress.counts else None)

    def _job(
        self,
        content: TokenizedTexts | Unread,
        head: Head,
        *,
        truncated: int = 0,
        on_batch: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> Job:
        return Job(
            content,
            head,
            priority=_chosen_priority.get() or self.terms.priority,
            prompt_length=self.prompt_length,
            options=self.options,
            batch_tokens=self.terms.settings.batch_tokens,
            max_texts=self.terms.settings.batch_size,
            shares_batches=not self.terms.separate_slices,
            truncated=truncated,
            on_batch=on_batch,
        )

    async def _collect(self, queued: deque[_Queued], output: Output[Result], waiter: Waiter) -> None:
        """Waits for the oldest slice and stores its results."""
        part, job = queued[0].part, queued[0].job
        found = await self._answer(job, part, waiter)
        queued.popleft()
        await waiter.run(partial(self._store, part, found, output))

    async def _answer(self, job: Job, part: Slice[Any], waiter: Waiter) -> NDArray[Any]:
        """Waits for the results of a job."""
        try:
            return await waiter.answer(job.answer)
        except TextFailedError as failure:
            raise self._named(failure, part) from failure.__cause__
        finally:
            for note in job.notes:
                warn_user(f"{self.terms.model.device} {note}", RuntimeWarning)

    def _store(self, part: Slice[Any], found: NDArray[Any], output: Output[Result]) -> None:
        self._require_finite(part, self.head.is_finite(found))
        output.add(part, found)

    def _require_finite(self, part: Slice[Any], finite: NDArray[np.bool_]) -> None:
        """Raises `NonFiniteOutputError` if the results of a distinct item are not finite."""
        if finite.all():
            return
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


class _FewTexts:
    """Few texts of a call for the queue; see `Unread`.

    Attributes:
        part: The texts as a slice.
        lengths: The report about their lengths.
        head: The computation of their results.
    """

    def __init__(self, call: Call[Any, Any], few: Few, items: list[str]) -> None:
        self.part: Slice[str] = Slice(call.terms.first, items)
        self.lengths = call.lengths()
        self.frame = few.frame
        self.head = few.head
        self.texts = self.part.distinct
        around = len(few.frame.prefix) + len(few.frame.suffix)
        self.characters = sum(map(len, self.texts)) + len(self.texts) * around
        self._check = call.require_embeddings

    def check(self, tokens: TokenizedTexts) -> int:
        """See `Unread.check`."""
        self.part.take_over(tokens)
        self._check(self.part)
        return self.lengths.add(self.part)


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
