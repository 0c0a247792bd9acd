"""The interface of engines, with their input and output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.guarantees.forks import cached
from bge_integrations.backend.text.tokenizer import Written

__all__ = [
    "Computed",
    "Engine",
    "EngineOptions",
    "EngineOutOfMemory",
    "GraphState",
    "Head",
    "OutputChoice",
    "PendingRows",
    "Priority",
    "Rows",
    "ScoringOptions",
    "ServedM3",
    "TextsRefused",
    "TokenBatch",
]

Rows = Literal["cls", "tokens", "pooled"]
"""The output of an engine for a text: its first row, all its rows, or what the checkpoint's own modules pool."""

Priority = Literal["interactive", "bulk"]
"""Interactive batches go before bulk batches: a user waits for a query, but not for one batch of an ingestion."""


class EngineOutOfMemory(Exception):
    """A batch needs more memory than the device has. A smaller batch may fit."""


class TextsRefused(Exception):
    """A server refuses the texts of a batch. Some of them alone may be right.

    Attributes:
        status: Status of its HTTP answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class GraphState:
    """The CUDA graphs of an engine.

    Attributes:
        is_on: Whether small batches are replayed as graphs.
        captured: Number of graphs that are kept now.
        fault: The difference or error that has switched graphs off; `None` without one.
    """

    is_on: bool
    captured: int
    fault: str | None


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Inputs of a decoder that scores pairs, in addition to the tokens.

    Attributes:
        prompt_tokens: Number of tokens after the passage.
        cutoff_layer: The last layer that is computed. `None`: all layers are computed.
        compress_ratio: Number of tokens that are merged into one.
        compress_layers: The layers after which tokens are merged.
    """

    prompt_tokens: int
    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """The outputs of bge-m3 to ask a server for.

    Attributes:
        dense: Whether the dense vectors are wanted.
        sparse: Whether the lexical weights are wanted.
    """

    dense: bool
    sparse: bool


EngineOptions = ScoringOptions | OutputChoice
"""Further inputs of an engine. Texts with different ones can't share a batch."""


@dataclass(frozen=True, eq=False)
class ServedM3:
    """A server's outputs of bge-m3 for one text. Outputs that were not requested are empty.

    Attributes:
        dense: The dense vector, float32, shape [dimension].
        token_ids: Ids of the tokens with a lexical weight, int32, shape [n].
        token_weights: Their weights, float32, shape [n].
    """

    dense: NDArray[np.float32]
    token_ids: NDArray[np.int32]
    token_weights: NDArray[np.float32]


@dataclass(frozen=True)
class TokenBatch:
    """The texts of one forward pass.

    Attributes:
        ids: Concatenated token ids of all texts, special tokens included, without padding; int32, shape [tokens].
        lengths: Tokens of each text, int64, shape [texts]. Their sum is the length of `ids`.
        prompt_length: Leading tokens of every text that come from an instruction, special tokens before it included.
            Used only by checkpoints whose pooling leaves the instruction out.
        first_lengths: Tokens of each pair before its second text, int64, shape [texts]; `None` for single texts.
        options: Inputs of decoders that score pairs, or the outputs of bge-m3 to ask a server for.
        written: The texts or pairs, for an engine that reads them instead of `ids`, which are empty then.
        priority: The priority of all texts, for an engine that shares its server with others.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    prompt_length: int = 0
    first_lengths: NDArray[np.int64] | None = None
    options: EngineOptions | None = None
    written: Written = ()
    priority: Priority = "bulk"

    @cached
    def is_token(self) -> NDArray[np.bool_]:
        """Mask of tokens that are not padding, shape [texts, longest]."""
        marks: NDArray[np.bool_] = np.arange(self.lengths.max()) < self.lengths[:, None]
        return marks

    @property
    def size(self) -> int:
        """Number of tokens, padding included."""
        return len(self.lengths) * int(self.lengths.max())

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Leading tokens of each text that pooling leaves out, shape [texts]. At least one token of each text is kept.

        An instruction before a short text may have fewer tokens than the instruction alone.
        """
        return np.minimum(self.prompt_length, self.lengths - 1)

    @property
    def is_second(self) -> NDArray[np.bool_] | None:
        """Mask of the second texts of pairs and all tokens after, shape [texts, longest]; `None` for single texts."""
        if self.first_lengths is None:
            return None
        marks: NDArray[np.bool_] = np.arange(self.lengths.max()) >= self.first_lengths[:, None]
        return marks & self.is_token

    def part(self, start: int, stop: int) -> TokenBatch:
        """Returns the texts from `start` to before `stop`."""
        ends = np.cumsum(self.lengths)
        first = int(ends[start - 1]) if start else 0
        return TokenBatch(
            self.ids[first : ends[stop - 1]],
            self.lengths[start:stop],
            self.prompt_length,
            None if self.first_lengths is None else self.first_lengths[start:stop],
            self.options,
            self.written[start:stop],
            self.priority,
        )

    def of(self, texts: NDArray[np.int64], *, prompt_length: int) -> TokenBatch:
        """Returns the texts at some indices, with another prompt length."""
        ends = np.cumsum(self.lengths)
        ids = [self.ids[ends[text] - self.lengths[text] : ends[text]] for text in texts]
        firsts = None if self.first_lengths is None else self.first_lengths[texts]
        return TokenBatch(np.concatenate(ids), self.lengths[texts], prompt_length, firsts, self.options)

    def padded(self, pad_id: int) -> NDArray[np.int32]:
        """Returns the ids, padded at the end, shape [texts, longest]."""
        if self.lengths.min() == self.lengths.max():
            return self.ids.reshape(len(self.lengths), -1)
        padded = np.full(self.is_token.shape, pad_id, dtype=np.int32)
        padded[self.is_token] = self.ids
        return padded


@dataclass(frozen=True, eq=False)
class Head:
    """The computation of results from an engine's rows, one result per text.

    Texts of several callers with the same head are computed at once.

    Attributes:
        apply: Function that computes the results of a batch from its rows. The first axis of the results is the texts.
        empty: Function that returns an array with room for the results of a number of texts.
        is_finite: Function that marks the results without NaN and infinity, shape [texts].
    """

    apply: Callable[[TokenBatch, NDArray[np.float32]], NDArray[Any]]
    empty: Callable[[int], NDArray[Any]]
    is_finite: Callable[[NDArray[Any]], NDArray[np.bool_]]


class PendingRows(Protocol):
    """The rows of a submitted batch."""

    def result(self) -> NDArray[np.float32]:
        """Waits for the rows.

        Returns:
            float32, before normalisation. Shape [texts, width] for an engine with the rows "cls" or "pooled". Shape
            [tokens, width], without padding, for "tokens".

        Raises:
            EngineOutOfMemory: The batch does not fit into memory.
        """
        ...


@dataclass(frozen=True)
class Computed:
    """Finished rows, from an engine that computes within `submit`."""

    rows: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`."""
        return self.rows


class Engine(Protocol):
    """Runs a loaded model. Thread-safe.

    Attributes:
        name: Name in the setting `engine`.
        rows: The kind of output for a text.
        batch_tokens: The best batch size in tokens, padding included.
        max_texts: Greatest number of texts in a batch. `None`: no limit.
    """

    name: str
    rows: Rows
    batch_tokens: int
    max_texts: int | None

    @property
    def parallel_batches(self) -> int:
        """Number of submitted batches that keep the engine busy. If it is more than one, it computes them in order."""
        ...

    def submit(self, batch: TokenBatch) -> PendingRows:
        """Starts one batch.

        Raises:
            EngineOutOfMemory: The batch does not fit into memory.
        """
        ...

    def abandon(self) -> None:
        """Drops all native objects. Called in a forked child, where their threads do not exist.

        The engine is not used afterwards, unless its slot makes it usable again.
        """
        ...
