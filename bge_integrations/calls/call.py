"""One call, from texts or pairs of them to results: slice by slice, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Head, ScoringOptions
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
    EngineFailedError,
    MissingEmbeddingError,
    NonFiniteOutputError,
)
from bge_integrations.settings import ModelSettings

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel

# Sorted by length, so many texts leave hardly any padding; tokenising as many takes less than a second.
ITEMS_A_SLICE = 4096


Item = TypeVar("Item", str, tuple[str, str])
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

Slices = tuple[int | None, Iterator[list[Item]]]
"""How many items there are, `None` if that is not known; and slices of them."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is decided before the items of a call are looked at, whatever comes out of it.

    Attributes:
        model: What computes.
        settings: What the user set.
        max_length: Tokens per item, special tokens included.
        priority: Interactive calls go before bulk ones, and show no progress bar.
        item: What the call is given, in words, for messages.
        first: The index of its first item, where it is part of a larger call.
        whole: The report of that larger call, which warns and shows progress once for all its parts.
    """

    model: LoadedModel
    settings: ModelSettings
    max_length: int
    priority: Priority
    item: str = "text"
    first: int = 0
    whole: LengthReport | None = None


class Output(Protocol[Result_co]):
    """Collects the results of a call."""

    def add(self, part: Slice[Any], found: NDArray[Any]) -> None:
        """Stores the results of the distinct items of a slice. Slices come in their order."""
        ...

    def value(self) -> Result_co:
        """Returns what was stored."""
        ...


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Item, Result]):
    """Takes texts, or pairs of them, through tokenizer, queue and engine.

    Attributes:
        terms: What is decided before.
        cut: Checks items and cuts them into slices of a size; takes the items, the public method's name, and the size.
        tokenize: Turns items, each of them once, into ids.
        output: Makes what collects the results of so many items; `None` if their number is not known.
        head: What makes results of an engine's rows.
        share: What is taken of each item's tokens by what is no part of the user's texts.
        prompt_length: Leading tokens that pooling leaves out.
        options: What a decoder is told beside the tokens.
    """

    terms: Terms
    cut: Callable[[Iterable[Item], str, int], Slices[Item]]
    tokenize: Callable[[Sequence[Item]], TokenizedTexts]
    output: Callable[[int | None], Output[Result]]
    head: Head
    share: Share
    prompt_length: int = 0
    options: ScoringOptions | None = None

    def run(self, items: Iterable[Item], method: str) -> Result:
        """Computes results.

        Args:
            items: The texts or pairs.
            method: The public method, for messages.
        """
        with call_span(method, self.terms.settings) as attributes:
            return run_blocking(self.compute(items, method, attributes, Blocking()))

    async def run_async(self, items: Iterable[Item], method: str) -> Result:
        """As `run`, without blocking the event loop."""
        with call_span(method, self.terms.settings) as attributes:
            return await self.compute(items, method, attributes, OnLoop(items))

    async def compute(self, items: Iterable[Item], method: str, attributes: dict[str, int], waiter: Waiter) -> Result:
        """Computes results. Interrupted or cancelled, it gives up what is still queued.

        Args:
            items: The texts or pairs.
            method: The public method, for messages.
            attributes: Of the span, to which this call's counts are added.
            waiter: How to wait.
        """
        terms, settings = self.terms, self.terms.settings
        self.share.check(settings, terms.max_length)
        count, slices = await waiter.run(partial(self.cut, items, method, ITEMS_A_SLICE))
        output = self.output(count)
        lengths = LengthReport(terms.max_length, settings.on_truncation, terms.item, self.share.instruction_tokens)
        tokenised = self._tokenised(slices, lengths)
        if settings.on_truncation == "error":
            # Every length is known before anything is computed, so that nothing is computed in vain.
            tokenised = iter(await waiter.run(partial(list, tokenised)))
        # A thread that waits for a few texts, and has no more of them to tokenise, may as well compute them.
        may_lend = waiter.blocks and count is not None and count <= FEW_TEXTS
        is_shown = settings.show_progress and terms.priority == "bulk" and terms.whole is None
        queued: deque[_Queued] = deque()
        with Progress(count, shown=is_shown, unit=terms.item) as progress:
            try:
                while (part := await waiter.run(partial(next, tokenised, None))) is not None:
                    job = self._job(part, progress)
                    queued.append(_Queued(part, job))  # before it starts, so that an interrupt in between cancels it
                    terms.model.scheduler.submit(job, settings.max_queued_texts, may_lend=may_lend)
                    # One slice is computed while the next one is tokenised.
                    if len(queued) > 1:
                        await self._collect(queued, output, waiter)
                lengths.add_to(attributes)
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
            priority=self.terms.priority,
            prompt_length=self.prompt_length,
            options=self.options,
            batch_tokens=self.terms.settings.batch_tokens,
            max_texts=self.terms.settings.batch_size,
            truncated=part.cut,
            on_batch=count if progress.counts else None,
        )

    async def _collect(self, queued: deque[_Queued], output: Output[Result], waiter: Waiter) -> None:
        """Waits for the oldest slice, and takes its results."""
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
            raise NonFiniteOutputError(
                f"{settings.model_name} gave NaN or infinity for {self.terms.item} {first} (precision "
                f"{settings.precision!r}). With float16 try precision='bfloat16' or 'float32'; with float32 the "
                "checkpoint itself is damaged.",
                first,
            )
        output.add(part, found)

    def _named(self, failure: TextFailedError, part: Slice[Any]) -> Exception:
        """Says which item of the call the engine failed on."""
        item, device = self.terms.item, self.terms.model.device
        index = part.first_index(np.array([failure.position]))
        which = f"{item.capitalize()} {index}, of {part.tokens.lengths[failure.position]} tokens,"
        if failure.out_of_memory:
            return DeviceMemoryError(
                f"{which} does not fit into the memory of {device} even alone ({failure.__cause__}). Set a smaller "
                "max_length, or run with device='cpu'.",
                index,
            )
        return EngineFailedError(
            f"{which} makes the engine fail even alone: {failure.__cause__!r}. If it fails on any {item}, "
            "engine='sentence-transformers' may not.",
            index,
        )


@dataclass(frozen=True)
class _Queued:
    """A slice on its way."""

    part: Slice[Any]
    job: Job


def call_span(method: str, settings: ModelSettings) -> AbstractContextManager[dict[str, int]]:
    """Wraps a public call in a span; see `telemetry.span`."""
    return span(f"bge.{method}", {"bge.model": settings.model_name})
