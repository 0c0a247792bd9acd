"""One call, from texts or pairs of them to results: slice by slice, so that memory does not grow with the corpus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Head, ScoringOptions
from bge_integrations.backend.interrupts import Ticket
from bge_integrations.backend.jobs import Job, TextFailedError
from bge_integrations.backend.lookups import missing_embedding
from bge_integrations.backend.telemetry import span
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.backend.truncation import Share
from bge_integrations.driving import Steps, run, run_async
from bge_integrations.errors import (
    DeviceMemoryError,
    EngineFailedError,
    MissingEmbeddingError,
    NonFiniteEmbeddingError,
    TruncationError,
)
from bge_integrations.reporting import Progress, TruncationWarning, warn_user
from bge_integrations.settings import ModelSettings, OnTruncation
from bge_integrations.texts import is_text, plain

if TYPE_CHECKING:
    from bge_integrations.backend.loading import LoadedModel

# Sorted by length, so many texts leave hardly any padding; tokenising as many takes less than a second.
ITEMS_A_SLICE = 4096

_FEW_TEXTS = 32
_FEW_CHARACTERS = 16384  # tokenised in a few milliseconds

Item = TypeVar("Item", str, tuple[str, str])
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CallTerms:
    """What is decided before the texts of a call are looked at.

    Attributes:
        model: What computes.
        settings: What the user set.
        max_length: Tokens per item, special tokens included.
        is_urgent: Whether somebody waits for the results, so that they go before others, and want no progress bar.
        item: What the call is given, in words, for messages.
        first: The index of its first item, where it is part of a larger call.
        whole: The report of that larger call, which warns and shows progress once for all its parts.
    """

    model: LoadedModel
    settings: ModelSettings
    max_length: int
    is_urgent: bool
    item: str = "text"
    first: int = 0
    whole: LengthReport | None = None


class Call(ABC, Generic[Item, Result]):
    """Takes texts, or pairs of them, through tokenizer, queue and engine. For one call; its kinds say what comes out.

    Attributes:
        model: What computes.
        settings: What the user set.
    """

    def __init__(self, terms: CallTerms) -> None:
        """Takes what was decided before the texts are looked at."""
        self.model = terms.model
        self.settings = terms.settings
        self._item = terms.item
        self._first = terms.first
        self._max_length = terms.max_length
        self._is_urgent = terms.is_urgent
        self._whole = terms.whole
        self._show_progress = terms.settings.show_progress and not terms.is_urgent and terms.whole is None

    def run(self, items: Iterable[Item], method: str) -> Result:
        """Computes results.

        Args:
            items: The texts or pairs.
            method: The public method, for messages.
        """
        with call_span(method, self.settings) as attributes:
            return run(self.steps(items, method, attributes))

    async def run_async(self, items: Iterable[Item], method: str) -> Result:
        """As `run`, without blocking the event loop."""
        with call_span(method, self.settings) as attributes:
            return await run_async(self.steps(items, method, attributes), is_short=are_short(items))

    @abstractmethod
    def _slices(self, items: Iterable[Item], method: str, size: int) -> tuple[int | None, Iterator[list[Item]]]:
        """Checks items and cuts them into slices of a size; see `validation.slices_of_texts`."""

    @abstractmethod
    def _tokenize(self, items: Sequence[Item]) -> TokenizedTexts:
        """Turns items, each of them once, into ids."""

    @abstractmethod
    def _start(self, count: int | None) -> None:
        """Makes ready for so many results; None if that is not known."""

    @abstractmethod
    def _room(self, count: int) -> NDArray[np.generic]:
        """Returns an array for what the head gives for so many items."""

    @property
    @abstractmethod
    def _head(self) -> Head:
        """What makes results of an engine's rows."""

    @abstractmethod
    def _is_finite(self, found: NDArray[Any]) -> NDArray[np.bool_]:
        """Marks the results without NaN and infinity, shape [items]."""

    @abstractmethod
    def _keep(self, part: Slice[Item], found: NDArray[Any]) -> None:
        """Stores what the head gave for the distinct items of a slice. Slices come in their order."""

    @abstractmethod
    def _finished(self) -> Result:
        """Returns all that was stored."""

    @property
    @abstractmethod
    def _share(self) -> Share:
        """What is taken of each item's tokens by what is no part of the user's texts."""

    @property
    def _prompt_length(self) -> int:
        """Leading tokens that pooling leaves out."""
        return 0

    @property
    def _options(self) -> ScoringOptions | None:
        """What a decoder is told beside the tokens."""
        return None

    def steps(self, items: Iterable[Item], method: str, attributes: dict[str, int]) -> Steps[Result]:
        """Describes the work, which `driving` does.

        Args:
            items: The texts or pairs.
            method: The public method, for messages.
            attributes: Of the span, to which this call's counts are added.
        """
        share = self._share
        share.check(self.settings, self._max_length)
        count, slices = yield lambda: self._slices(items, method, ITEMS_A_SLICE)
        self._start(count)
        lengths = LengthReport(self._max_length, self.settings.on_truncation, self._item, share.instruction_tokens)
        tokenised = self._tokenised(slices, lengths)
        queued: deque[_Queued[Item]] = deque()
        if self.settings.on_truncation == "error":
            # Every length is known before anything is computed, so that nothing is computed in vain.
            tokenised = iter((yield lambda: list(tokenised)))
        with Progress(count, shown=self._show_progress, unit=self._item) as progress:
            try:
                while (part := (yield lambda: next(tokenised, None))) is not None:
                    started = _Queued(part, self._job(part, progress), Ticket())
                    queued.append(started)  # before it starts, so that an interrupt in between cancels it
                    self.model.scheduler.start(started.job, self.settings.max_queued_texts, started.ticket)
                    # One slice is computed while the next one is tokenised.
                    if len(queued) > 1:
                        yield from self._collect(queued)
                lengths.add_to(attributes)
                if self._whole is not None:
                    self._whole.include(lengths)
                else:
                    lengths.warn()
                while queued:
                    yield from self._collect(queued)
            finally:
                for started in queued:
                    self.model.scheduler.cancel(started.job)
        return self._finished()

    def _tokenised(self, slices: Iterator[list[Item]], lengths: LengthReport) -> Iterator[Slice[Item]]:
        start = self._first
        for items in slices:
            part = Slice(start, items, self._tokenize)
            self._require_embeddings(part)
            part.cut = lengths.add(part)
            start += len(items)
            yield part

    def _require_embeddings(self, part: Slice[Item]) -> None:
        missing = missing_embedding(part.tokens, self.model.facts, self.model.tokenizer)
        if missing is not None:
            index = part.first_index(np.array([missing.text]))
            raise MissingEmbeddingError(
                f"{self._item.capitalize()} {index} can't be computed by {self.settings.model_name}: it has "
                f"{missing.what}",
                index,
            )

    def _job(self, part: Slice[Item], progress: Progress) -> Job:
        def count(positions: NDArray[np.int64]) -> None:
            repeats = part.repeats[positions]
            progress.add(int(repeats.sum()), int(repeats @ part.tokens.lengths[positions]))

        return Job(
            part.tokens,
            self._head,
            self._room(len(part.tokens.lengths)),
            is_query=self._is_urgent,
            prompt_length=self._prompt_length,
            options=self._options,
            batch_tokens=self.settings.batch_tokens,
            max_texts=self.settings.batch_size,
            truncated=part.cut,
            on_batch=count if progress.counts else None,
        )

    def _collect(self, queued: deque[_Queued[Item]]) -> Steps[None]:
        """Waits for the oldest slice, and takes its results."""
        part, job = queued[0].part, queued[0].job
        try:
            found = yield queued[0].ticket
        except TextFailedError as failure:
            raise self._named(failure, part) from failure.__cause__
        finally:
            for note in job.notes:
                warn_user(f"{self.model.device} {note}", RuntimeWarning)
        queued.popleft()
        yield lambda: self._checked(part, found)

    def _checked(self, part: Slice[Item], found: NDArray[Any]) -> None:
        finite = self._is_finite(found)
        if not finite.all():
            first = part.first_index(np.flatnonzero(~finite))
            raise NonFiniteEmbeddingError(
                f"{self.settings.model_name} gave NaN or infinity for {self._item} {first} (precision "
                f"{self.settings.precision!r}). With float16 try precision='bfloat16' or 'float32'; with float32 the "
                "checkpoint itself is damaged.",
                first,
            )
        self._keep(part, found)

    def _named(self, failure: TextFailedError, part: Slice[Item]) -> Exception:
        """Says which item of the call the engine failed on."""
        index = part.first_index(np.array([failure.position]))
        which = f"{self._item.capitalize()} {index}, of {part.tokens.lengths[failure.position]} tokens,"
        if failure.out_of_memory:
            return DeviceMemoryError(
                f"{which} does not fit into the memory of {self.model.device} even alone ({failure.__cause__}). Set a "
                "smaller max_length, or run with device='cpu'.",
                index,
            )
        return EngineFailedError(
            f"{which} makes the engine fail even alone: {failure.__cause__!r}. If it fails on any {self._item}, "
            "engine='sentence-transformers' may not.",
            index,
        )


class Slice(Generic[Item]):
    """Some items of a call, tokenised, each distinct one once.

    Attributes:
        start: The index of its first item in the call.
        count: Its items.
        inverse: For each item, which of the distinct ones it is, int64, shape [items].
        is_distinct: Whether no item is in it twice.
        tokens: Of the distinct items.
        cut: Items that were cut.
    """

    def __init__(self, start: int, items: Sequence[Item], tokenize: Callable[[list[Item]], TokenizedTexts]) -> None:
        places: dict[Item, int] = {}
        indices = (places.setdefault(item, len(places)) for item in items)
        self.start = start
        self.inverse = np.fromiter(indices, np.int64, len(items))
        self.count = len(items)
        self.is_distinct = len(places) == len(items)
        self.tokens = tokenize(list(places))
        self.cut = 0

    @property
    def repeats(self) -> NDArray[np.int64]:
        """How often each distinct item is in it, shape [distinct items]."""
        counts: NDArray[np.int64] = np.bincount(self.inverse)
        return counts

    def first_index(self, positions: NDArray[np.int64]) -> int:
        """Returns the first item of the call that is at one of these positions among the distinct ones."""
        return self.start + int(np.flatnonzero(np.isin(self.inverse, positions))[0])


@dataclass(frozen=True)
class _Queued(Generic[Item]):
    """A slice on its way, and what to wait with for its results."""

    part: Slice[Item]
    job: Job
    ticket: Ticket[NDArray[Any]]


class LengthReport:
    """Counts items and tokens, and notes which items were cut.

    Attributes:
        items: The items.
        tokens: Their tokens, after they were cut.
        cut: The items that were cut.
    """

    def __init__(self, limit: int, on_truncation: OnTruncation, item: str, instruction_tokens: int = 0) -> None:
        """Starts to count.

        Args:
            limit: Tokens per item.
            on_truncation: What happens to longer ones.
            item: What is counted, in words.
            instruction_tokens: Tokens that the instruction takes of each item.
        """
        self._limit = limit
        self._instruction_tokens = instruction_tokens
        self._on_truncation = on_truncation
        self._item = item
        self.items = 0
        self.tokens = 0
        self.cut = 0
        self._longest = (0, 0, item)  # tokens, index negated, what it is

    def add(self, part: Slice[Any]) -> int:
        """Counts a slice, and returns how many of its items were cut.

        Raises:
            TruncationError: An item over the limit, if that is how it was asked for.
        """
        lengths = part.tokens.full_lengths[part.inverse]
        cut = np.flatnonzero(lengths > self._limit)
        if len(cut) and self._on_truncation == "error":
            first = int(cut[0])
            raise TruncationError(
                f"{self._item.capitalize()} {part.start + first} has {lengths[first]} tokens, the limit is "
                f"{self._limit}{self._about_instruction()}; {self._remedy('split it')}, or set on_truncation='warn'.",
                part.start + first,
            )
        longest = int(np.argmax(lengths))
        self._longest = max(self._longest, (int(lengths[longest]), -(part.start + longest), self._item))
        self.cut += len(cut)
        self.items += len(lengths)
        self.tokens += int(part.tokens.lengths[part.inverse].sum())
        return len(cut)

    def include(self, part: LengthReport) -> None:
        """Counts what the report of a part has counted."""
        if part._longest > self._longest:
            self._longest, self._instruction_tokens = part._longest, part._instruction_tokens
        self.cut += part.cut
        self.items += part.items
        self.tokens += part.tokens

    def add_to(self, attributes: dict[str, int]) -> None:
        """Adds the counts to a span's attributes."""
        for name, count in (("texts", self.items), ("tokens", self.tokens), ("texts.truncated", self.cut)):
            attributes[f"bge.{name}"] = attributes.get(f"bge.{name}", 0) + count

    def warn(self) -> None:
        """Tells the user, if anything was cut and nothing else is asked for."""
        if not self.cut or self._on_truncation != "warn":
            return
        tokens, index, item = self._longest
        warn_user(
            f"{self.cut} of {self.items} {self._item}s were cut: the longest, {item} {-index}, has {tokens} "
            f"tokens, the limit is {self._limit}{self._about_instruction()}. "
            f"{self._remedy('Split long texts before encoding')}, or set on_truncation='ignore'.",
            TruncationWarning,
        )

    def _about_instruction(self) -> str:
        if not self._instruction_tokens:
            return ""
        return f", and the instruction takes {self._instruction_tokens} of the {self._limit} tokens"

    def _remedy(self, usual: str) -> str:
        """Returns what helps: a shorter text does not where the instruction takes most of the room."""
        if 2 * self._instruction_tokens < self._limit:
            return usual
        return f"{'Give' if usual[0].isupper() else 'give'} a shorter instruction or a larger max_length"


def call_span(method: str, settings: ModelSettings) -> AbstractContextManager[dict[str, int]]:
    """Wraps a public call in a span; see `telemetry.span`."""
    return span(f"bge.{method}", {"bge.model": settings.model_name})


def are_short(items: Iterable[Any]) -> bool:
    """Whether these are so few and so short that their processing need not leave the event loop's thread."""
    if not isinstance(items, (list, tuple)) or len(items) > _FEW_TEXTS:
        return False
    return sum(_characters(item) for item in items) <= _FEW_CHARACTERS


def _characters(item: object) -> int:
    if is_text(item):
        return len(plain(item))
    return sum(len(plain(text)) for text in item if is_text(text)) if isinstance(item, (list, tuple)) else 0
