"""One call of an encoder, from texts to rows: slice by slice, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.jobs import Job, TextFailedError
from bge_integrations.backend.telemetry import span
from bge_integrations.driving import Steps, run, run_async
from bge_integrations.errors import DeviceMemoryError, EngineFailedError, NonFiniteEmbeddingError, TruncationError
from bge_integrations.instructions import Instruction
from bge_integrations.reporting import Progress, TruncationWarning, warn_user
from bge_integrations.settings import EncoderSettings, OnTruncation
from bge_integrations.validation import slices_of_texts

if TYPE_CHECKING:
    from bge_integrations.backend.loading import LoadedModel

# Sorted by length, so many texts leave hardly any padding; tokenising as many takes less than a second.
TEXTS_A_SLICE = 4096

_NORM_FLOOR = np.float32(1e-12)  # as torch.nn.functional.normalize
_FIRST_ROWS = 1024
_FEW_TEXTS = 32
_FEW_CHARACTERS = 16384  # tokenised in a few milliseconds


class EncodingCall:
    """Encodes the texts of one call."""

    def __init__(
        self,
        model: LoadedModel,
        settings: EncoderSettings,
        instruction: Instruction,
        *,
        max_length: int,
        dimension: int,
        normalizes: bool,
        is_query: bool,
        show_progress: bool,
    ) -> None:
        """Takes what was decided before the texts are looked at.

        Args:
            model: What computes.
            settings: The encoder's settings.
            instruction: What goes around each text.
            max_length: Tokens per text, special tokens included.
            dimension: Of the vectors.
            normalizes: Whether they get unit length.
            is_query: Whether somebody waits for them, so that they go before documents.
            show_progress: Whether a bar is drawn.
        """
        self._model = model
        self._settings = settings
        self._instruction = instruction
        self._max_length = max_length
        self._dimension = dimension
        self._normalizes = normalizes
        self._is_query = is_query
        self._show_progress = show_progress
        self._prompt_length = model.prompt_length(instruction.prefix)

    def run(self, texts: Iterable[str], method: str) -> NDArray[np.float32]:
        """Encodes texts; see `BgeEncoder.encode_queries`.

        Args:
            texts: The texts.
            method: The public method, for messages.
        """
        with self._span(method) as attributes:
            return run(self._steps(texts, method, attributes))

    async def run_async(self, texts: Iterable[str], method: str) -> NDArray[np.float32]:
        """As `run`, without blocking the event loop."""
        with self._span(method) as attributes:
            return await run_async(self._steps(texts, method, attributes), is_short=_are_short(texts))

    def _span(self, method: str) -> AbstractContextManager[dict[str, int]]:
        return span(f"bge.{method}", {"bge.model": self._settings.model_name})

    def _steps(self, texts: Iterable[str], method: str, attributes: dict[str, int]) -> Steps[NDArray[np.float32]]:
        count, slices = yield lambda: slices_of_texts(texts, method, TEXTS_A_SLICE)
        lengths = _LengthReport(self._max_length, self._settings.on_truncation)
        tokenised = self._tokenised(slices, lengths)
        rows = _Rows(count, self._dimension)
        queued: deque[tuple[_Slice, Job]] = deque()
        if self._settings.on_truncation == "error":
            # Every length is known before anything is computed, so that nothing is computed in vain.
            tokenised = iter((yield lambda: list(tokenised)))
        with Progress(count, shown=self._show_progress) as progress:
            try:
                while (part := (yield lambda: next(tokenised, None))) is not None:
                    queued.append((part, self._job(part, progress)))
                    yield self._model.scheduler.admit(queued[-1][1], self._settings.max_queued_texts)
                    self._model.scheduler.submit(queued[-1][1])
                    # One slice is computed while the next one is tokenised.
                    if len(queued) > 1:
                        yield from self._collect(queued, rows)
                attributes |= {
                    "bge.texts": lengths.texts,
                    "bge.tokens": lengths.tokens,
                    "bge.texts.truncated": lengths.cut,
                }
                if lengths.cut:
                    self._model.meter.add(truncated_texts=lengths.cut)
                if self._settings.on_truncation == "warn":
                    lengths.warn()
                while queued:
                    yield from self._collect(queued, rows)
            finally:
                for _, job in queued:
                    job.done.cancel()
        return rows.finished()

    def _tokenised(self, slices: Iterator[list[str]], lengths: _LengthReport) -> Iterator[_Slice]:
        for texts in slices:
            part = _Slice(texts, self._instruction, self._model, self._max_length)
            lengths.add(part)
            yield part

    def _job(self, part: _Slice, progress: Progress) -> Job:
        def count(positions: NDArray[np.int64]) -> None:
            progress.add(int(part.repeats[positions].sum()), int(part.tokens.lengths[positions].sum()))

        return Job(
            part.tokens,
            self._model.facts.dimension,
            is_query=self._is_query,
            prompt_length=self._prompt_length,
            batch_tokens=self._settings.batch_tokens,
            max_texts=self._settings.batch_size,
            on_batch=count if self._show_progress else None,
        )

    def _collect(self, queued: deque[tuple[_Slice, Job]], rows: _Rows) -> Steps[None]:
        """Waits for the oldest slice, and takes its vectors."""
        part, job = queued[0]
        start, target = rows.next(part.count)
        try:
            pooled = yield job.done
        except TextFailedError as failure:
            raise self._named(failure, part, start) from failure.__cause__
        finally:
            for note in job.notes:
                warn_user(f"{self._model.device} {note}", RuntimeWarning)
        queued.popleft()
        yield lambda: self._fill(target, part, start, pooled)

    def _fill(self, target: NDArray[np.float32], part: _Slice, start: int, pooled: NDArray[np.float32]) -> None:
        finite = np.isfinite(pooled).all(axis=1)
        if not finite.all():
            self._refuse_non_finite(start + part.first_index(np.flatnonzero(~finite)))
        kept = pooled[:, : self._dimension]
        if self._normalizes:
            kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), _NORM_FLOOR)
        if part.is_distinct:
            target[:] = kept
        else:
            np.take(kept, part.inverse, axis=0, out=target)

    def _named(self, failure: TextFailedError, part: _Slice, start: int) -> Exception:
        """Says which text of the call the engine failed on."""
        index = start + part.first_index(np.array([failure.position]))
        text = f"Text {index}, of {part.tokens.lengths[failure.position]} tokens,"
        if failure.out_of_memory:
            return DeviceMemoryError(
                f"{text} does not fit into the memory of {self._model.device} even alone ({failure.__cause__}). Set a "
                "smaller max_length, or run with device='cpu'.",
                index,
            )
        return EngineFailedError(
            f"{text} makes the engine fail even alone: {failure.__cause__!r}. If it fails on any text, "
            "engine='sentence-transformers' may not.",
            index,
        )

    def _refuse_non_finite(self, first: int) -> None:
        raise NonFiniteEmbeddingError(
            f"{self._settings.model_name} gave NaN or infinity for text {first} (precision "
            f"{self._settings.precision!r}). With float16 try precision='bfloat16' or 'float32'; with float32 the "
            "checkpoint itself is damaged.",
            first,
        )


def _are_short(texts: object) -> bool:
    """Whether the texts of a call take no time worth mentioning beside an event loop's."""
    if not isinstance(texts, (list, tuple)) or len(texts) > _FEW_TEXTS:
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) <= _FEW_CHARACTERS


class _Slice:
    """Some texts of a call, tokenised, each distinct one once."""

    def __init__(self, texts: list[str], instruction: Instruction, model: LoadedModel, max_length: int) -> None:
        places: dict[str, int] = {}
        indices = (places.setdefault(text, len(places)) for text in texts)
        self.inverse = np.fromiter(indices, np.int64, len(texts))
        self.count = len(texts)
        self.is_distinct = len(places) == len(texts)
        self.repeats = np.bincount(self.inverse)
        self.tokens = model.tokenizer.tokenize([instruction.apply(text) for text in places], max_length)

    def first_index(self, positions: NDArray[np.int64]) -> int:
        """Returns the first text of the slice that is at one of these positions among the distinct ones."""
        return int(np.flatnonzero(np.isin(self.inverse, positions))[0])


class _LengthReport:
    """Counts texts and tokens, and notes which texts were cut."""

    def __init__(self, limit: int, on_truncation: OnTruncation) -> None:
        self._limit = limit
        self._refuses = on_truncation == "error"
        self.texts = 0
        self.tokens = 0
        self.cut = 0
        self._longest = (0, 0)  # tokens, index

    def add(self, part: _Slice) -> None:
        """Counts a slice.

        Raises:
            TruncationError: A text over the limit, if that is how it was asked for.
        """
        lengths = part.tokens.full_lengths[part.inverse]
        cut = np.flatnonzero(lengths > self._limit)
        if len(cut) and self._refuses:
            first = int(cut[0])
            raise TruncationError(
                f"Text {self.texts + first} has {lengths[first]} tokens, the limit is {self._limit}; split it, or set "
                "on_truncation='warn'.",
                self.texts + first,
            )
        longest = int(np.argmax(lengths))
        self._longest = max(self._longest, (int(lengths[longest]), -(self.texts + longest)))
        self.cut += len(cut)
        self.texts += len(lengths)
        self.tokens += int(np.minimum(lengths, self._limit).sum())

    def warn(self) -> None:
        """Tells the user, if anything was cut."""
        if not self.cut:
            return
        tokens, index = self._longest
        warn_user(
            f"{self.cut} of {self.texts} texts were cut: the longest, text {-index}, has {tokens} tokens, the limit "
            f"is {self._limit}. Split long texts before encoding, or set on_truncation='ignore'.",
            TruncationWarning,
        )


class _Rows:
    """The vectors of a call: one array, made at once if it is known how many there will be, else growing."""

    def __init__(self, count: int | None, dimension: int) -> None:
        self._grows = count is None
        self._array = np.empty((_FIRST_ROWS if count is None else count, dimension), dtype=np.float32)
        self._used = 0

    def next(self, count: int) -> tuple[int, NDArray[np.float32]]:
        """Returns the index of the first row not yet used, and as many from there as asked for."""
        start, self._used = self._used, self._used + count
        if self._grows and self._used > len(self._array):
            # Moves the memory instead of copying it, where the system can. Nobody else holds a view by now.
            self._array.resize((max(self._used, 2 * len(self._array)), self._array.shape[1]), refcheck=False)
        return start, self._array[start : self._used]

    def finished(self) -> NDArray[np.float32]:
        """Returns the rows used."""
        if self._used < len(self._array):
            self._array.resize((self._used, self._array.shape[1]), refcheck=False)
        return self._array
