"""One call of an encoder: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Head
from bge_integrations.backend.heads import unit_rows
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.backend.truncation import Share, tokenize_within
from bge_integrations.calling import Call, CallTerms, Slice
from bge_integrations.instructions import Instruction
from bge_integrations.validation import slices_of_texts

_FIRST_ROWS = 1024


class EncodingCall(Call[str, NDArray[np.float32]]):
    """Encodes the texts of one call."""

    def __init__(self, terms: CallTerms, instruction: Instruction, *, dimension: int, normalizes: bool) -> None:
        """Takes what was decided before the texts are looked at.

        Args:
            terms: As for every call.
            instruction: What goes around each text.
            dimension: Of the vectors.
            normalizes: Whether they get unit length.
        """
        super().__init__(terms)
        self._instruction = instruction
        self._dimension = dimension
        self._normalizes = normalizes
        self._pooling_leaves_out = terms.model.prompt_length(instruction.prefix)

    def _slices(self, items: Iterable[str], method: str, size: int) -> tuple[int | None, Iterator[list[str]]]:
        return slices_of_texts(items, method, size)

    def _tokenize(self, items: Sequence[str]) -> TokenizedTexts:
        instruction = self._instruction
        return tokenize_within(self.model.tokenizer, instruction.prefix, items, instruction.suffix, self._max_length)

    @property
    def _share(self) -> Share:
        return self.model.share(self._instruction.prefix, self._instruction.suffix)

    def _start(self, count: int | None) -> None:
        self._rows = _Rows(count, self._dimension)

    def _room(self, count: int) -> NDArray[np.generic]:
        return np.empty((count, self.model.facts.dimension), dtype=np.float32)

    @property
    def _head(self) -> Head:
        return self.model.vectors

    @property
    def _prompt_length(self) -> int:
        return self._pooling_leaves_out

    def _is_finite(self, found: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(found).all(axis=1))

    def _keep(self, part: Slice[str], found: NDArray[np.float32]) -> None:
        target = self._rows.next(part.count)
        kept = found[:, : self._dimension]
        if self._normalizes:
            kept = unit_rows(kept)
        if part.is_distinct:
            target[:] = kept
        else:
            np.take(kept, part.inverse, axis=0, out=target)

    def _finished(self) -> NDArray[np.float32]:
        return self._rows.finished()


class _Rows:
    """The vectors of a call: one array, made at once if it is known how many there will be, else growing."""

    def __init__(self, count: int | None, dimension: int) -> None:
        self._grows = count is None
        self._array = np.empty((_FIRST_ROWS if count is None else count, dimension), dtype=np.float32)
        self._used = 0

    def next(self, count: int) -> NDArray[np.float32]:
        """Returns as many rows as asked for that are not used yet."""
        start, self._used = self._used, self._used + count
        if self._grows and self._used > len(self._array):
            # Moves the memory instead of copying it, where the system can. Nobody else holds a view by now.
            self._array.resize((max(self._used, 2 * len(self._array)), self._array.shape[1]), refcheck=False)
        return self._array[start : self._used]

    def finished(self) -> NDArray[np.float32]:
        """Returns the rows used."""
        if self._used < len(self._array):
            self._array.resize((self._used, self._array.shape[1]), refcheck=False)
        return self._array
