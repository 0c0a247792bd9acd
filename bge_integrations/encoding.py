"""One call of an encoder, from texts to rows: slice by slice, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.feeding import TextTooLargeError, one_ahead, run_batches
from bge_integrations.errors import DeviceMemoryError, NonFiniteEmbeddingError, TruncationError
from bge_integrations.instructions import Instruction
from bge_integrations.reporting import Progress, warn_about_truncation
from bge_integrations.settings import EncoderSettings, OnTruncation
from bge_integrations.validation import slices_of_texts

if TYPE_CHECKING:
    from bge_integrations.backend.loading import LoadedModel

# Sorted by length, so many texts leave hardly any padding; tokenising as many takes less than a second.
TEXTS_A_SLICE = 4096

_NORM_FLOOR = np.float32(1e-12)  # as torch.nn.functional.normalize
_FIRST_ROWS = 1024


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
            show_progress: Whether a bar is drawn.
        """
        self._model = model
        self._settings = settings
        self._instruction = instruction
        self._max_length = max_length
        self._dimension = dimension
        self._normalizes = normalizes
        self._show_progress = show_progress
        self._prompt_length = model.prompt_length(instruction.prefix)

    def run(self, texts: Iterable[str], method: str) -> NDArray[np.float32]:
        """Encodes texts; see `BgeEncoder.encode_queries`.

        Args:
            texts: The texts.
            method: The public method, for messages.
        """
        count, slices = slices_of_texts(texts, method, TEXTS_A_SLICE)
        lengths = _LengthReport(self._max_length, self._settings.on_truncation)
        rows = _Rows(count, self._dimension)
        parts = one_ahead(slices, self._tokenize)
        if self._settings.on_truncation == "error":
            # Every length is known before anything is computed, so that nothing is computed in vain.
            parts = iter([(part, is_last) for part, is_last in parts if lengths.add(part)])
        with Progress(count, shown=self._show_progress) as progress:
            for part, is_last in parts:
                if self._settings.on_truncation == "warn":
                    lengths.add(part)
                    if is_last:
                        lengths.warn()
                start, target = rows.next(part.count)
                self._fill(target, part, start, progress)
        return rows.finished()

    def _tokenize(self, texts: list[str]) -> _Slice:
        return _Slice(texts, self._instruction, self._model, self._max_length)

    def _fill(self, target: NDArray[np.float32], part: _Slice, start: int, progress: Progress) -> None:
        rows = target if part.is_distinct else np.empty((len(part.tokens.lengths), self._dimension), dtype=np.float32)
        batches = run_batches(
            self._model,
            part.tokens,
            prompt_length=self._prompt_length,
            batch_tokens=self._settings.batch_tokens,
            max_texts=self._settings.batch_size,
        )
        try:
            for positions, pooled in batches:
                finite = np.isfinite(pooled).all(axis=1)
                if not finite.all():
                    self._refuse_non_finite(start + part.first_index(positions[~finite]))
                kept = pooled[:, : self._dimension]
                if self._normalizes:
                    kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), _NORM_FLOOR)
                rows[positions] = kept
                progress.add(int(part.repeats[positions].sum()), int(part.tokens.lengths[positions].sum()))
        except TextTooLargeError as error:
            index = start + part.first_index(np.array([error.position]))
            raise DeviceMemoryError(
                f"Text {index}, of {part.tokens.lengths[error.position]} tokens, does not fit into the memory of "
                f"{self._model.device} even alone ({error}). Set a smaller max_length, or run with device='cpu'.",
                index,
            ) from error
        if not part.is_distinct:
            np.take(rows, part.inverse, axis=0, out=target)

    def _refuse_non_finite(self, first: int) -> None:
        raise NonFiniteEmbeddingError(
            f"{self._settings.model_name} gave NaN or infinity for text {first} (precision "
            f"{self._settings.precision!r}). With float16 try precision='bfloat16' or 'float32'; with float32 the "
            "checkpoint itself is damaged.",
            first,
        )


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
    """Notes which texts were cut."""

    def __init__(self, limit: int, on_truncation: OnTruncation) -> None:
        self._limit = limit
        self._refuses = on_truncation == "error"
        self._texts = 0
        self._cut = 0
        self._longest = (0, 0)  # tokens, index

    def add(self, part: _Slice) -> bool:
        """Counts a slice. Always true, so that it can stand in a comprehension.

        Raises:
            TruncationError: A text over the limit, if that is how it was asked for.
        """
        lengths = part.tokens.full_lengths[part.inverse]
        cut = np.flatnonzero(lengths > self._limit)
        if len(cut) and self._refuses:
            first = int(cut[0])
            raise TruncationError(
                f"Text {self._texts + first} has {lengths[first]} tokens, the limit is {self._limit}; split it, or set "
                "on_truncation='warn'.",
                self._texts + first,
            )
        longest = int(np.argmax(lengths))
        self._longest = max(self._longest, (int(lengths[longest]), -(self._texts + longest)))
        self._cut += len(cut)
        self._texts += len(lengths)
        return True

    def warn(self) -> None:
        """Tells the user, if anything was cut."""
        if not self._cut:
            return
        tokens, index = self._longest
        warn_about_truncation(
            f"{self._cut} of {self._texts} texts were cut: the longest, text {-index}, has {tokens} tokens, the limit "
            f"is {self._limit}. Split long texts before encoding, or set on_truncation='ignore'."
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
