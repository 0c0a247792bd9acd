"""What computes: one class an engine, all behind the same interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.forks import cached

__all__ = ["Computed", "Engine", "EngineOutOfMemory", "Head", "PendingRows", "Rows", "ScoringOptions", "TokenBatch"]

Rows = Literal["cls", "tokens", "pooled"]
"""What an engine gives for a text: its first row, all its rows, or what the checkpoint's own modules make of them."""


class EngineOutOfMemory(Exception):
    """A batch needs more memory than the device has; a smaller one may fit."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What a decoder that scores pairs is told beside the tokens.

    Attributes:
        prompt_tokens: Tokens after the passage.
        cutoff_layer: The layer to stop after.
        compress_ratio: How many tokens become one.
        compress_layers: After which layers.
    """

    prompt_tokens: int
    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenBatch:
    """One forward pass worth of texts.

    Attributes:
        ids: Token ids of all texts one after another, special tokens included, not padded; int32, shape [tokens].
        lengths: Tokens of each text, int64, shape [texts]; together they are the length of `ids`.
        prompt_length: Tokens at the start of every text that come from an instruction, special tokens before it
            included. Only checkpoints that leave the instruction out of their mean look at it.
        first_lengths: Of pairs of texts, the leading tokens that are no part of the second one, int64, shape [texts];
            None for single texts.
        options: For decoders that score pairs.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    prompt_length: int = 0
    first_lengths: NDArray[np.int64] | None = None
    options: ScoringOptions | None = None

    @cached
    def is_token(self) -> NDArray[np.bool_]:
        """Marks what is no padding, shape [texts, longest]."""
        marks: NDArray[np.bool_] = np.arange(self.lengths.max()) < self.lengths[:, None]
        return marks

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return len(self.lengths) * int(self.lengths.max())

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Leading tokens of each text that pooling leaves out, shape [texts]. At least one token of each is left.

        Next to a short text an instruction may come out as fewer tokens than alone.
        """
        return np.minimum(self.prompt_length, self.lengths - 1)

    @property
    def is_second(self) -> NDArray[np.bool_] | None:
        """Marks the second texts of pairs, with all after them, shape [texts, longest]; None for single texts."""
        if self.first_lengths is None:
            return None
        marks: NDArray[np.bool_] = np.arange(self.lengths.max()) >= self.first_lengths[:, None]
        return marks & self.is_token

    def part(self, start: int, stop: int) -> TokenBatch:
        """Returns some texts of it."""
        ends = np.cumsum(self.lengths)
        first = int(ends[start - 1]) if start else 0
        return TokenBatch(
            self.ids[first : ends[stop - 1]],
            self.lengths[start:stop],
            self.prompt_length,
            None if self.first_lengths is None else self.first_lengths[start:stop],
            self.options,
        )

    def of(self, texts: NDArray[np.int64], *, prompt_length: int) -> TokenBatch:
        """Returns some texts of it, which have another prompt length."""
        ends = np.cumsum(self.lengths)
        ids = [self.ids[ends[text] - self.lengths[text] : ends[text]] for text in texts]
        firsts = None if self.first_lengths is None else self.first_lengths[texts]
        return TokenBatch(np.concatenate(ids), self.lengths[texts], prompt_length, firsts, self.options)

    def padded(self, pad_id: int) -> NDArray[np.int32]:
        """Returns the ids, short texts filled up at the end, shape [texts, longest]."""
        if self.lengths.min() == self.lengths.max():
            return self.ids.reshape(len(self.lengths), -1)
        padded = np.full(self.is_token.shape, pad_id, dtype=np.int32)
        padded[self.is_token] = self.ids
        return padded


@dataclass(frozen=True)
class Head:
    """What a model makes of an engine's rows, one result a text.

    Attributes:
        apply: Computes the results of a batch from its rows: an array whose first axis is the texts.
        empty: Returns an array with room for the results of so many texts.
        is_finite: Marks the results without NaN and infinity, shape [texts].
    """

    apply: Callable[[TokenBatch, NDArray[np.float32]], NDArray[Any]]
    empty: Callable[[int], NDArray[Any]]
    is_finite: Callable[[NDArray[Any]], NDArray[np.bool_]]


class PendingRows(Protocol):
    """A batch on its way."""

    def result(self) -> NDArray[np.float32]:
        """Waits for the rows: float32, before normalisation.

        Returns:
            Shape [texts, width] for an engine whose rows are "cls" or "pooled"; for "tokens" [tokens, width], without
            padding.

        Raises:
            EngineOutOfMemory: The batch does not fit.
        """
        ...


@dataclass(frozen=True)
class Computed:
    """Rows that an engine which doesn't run beside its caller has finished already."""

    rows: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`."""
        return self.rows


class Engine(Protocol):
    """Runs a loaded model. May be called from several threads.

    Attributes:
        name: As in the setting `engine`.
        rows: What it gives for a text.
        batch_tokens: Tokens, padding included, in one forward pass, for best speed.
    """

    name: str
    rows: Rows
    batch_tokens: int

    @property
    def parallel_batches(self) -> int:
        """How many batches a caller should have on their way to keep it busy."""
        ...

    def submit(self, batch: TokenBatch) -> PendingRows:
        """Starts one batch.

        Raises:
            EngineOutOfMemory: The batch does not fit.
        """
        ...

    def abandon(self) -> None:
        """Lets go of everything native, in a forked child, where the threads behind it are gone.

        The engine is not used any more afterwards, unless its slot makes it usable again.
        """
        ...
