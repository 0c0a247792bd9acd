"""From the hidden states of tokens to one vector per text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Rows, TokenBatch

Float = TypeVar("Float", np.float32, np.float64)
Pool = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


def _first(rows: NDArray[np.float32], starts: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.float32]:
    first: NDArray[np.float32] = rows[starts]
    return first


def _mean(rows: NDArray[np.float32], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    sums = np.add.reduceat(rows, starts, axis=0)
    return np.divide(sums, lengths[:, None], dtype=np.float32)


def _max(rows: NDArray[np.float32], starts: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.float32]:
    highest: NDArray[np.float32] = np.maximum.reduceat(rows, starts, axis=0)
    return highest


def _last(rows: NDArray[np.float32], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    last: NDArray[np.float32] = rows[starts + lengths - 1]
    return last


TOKEN_POOLINGS: Mapping[str, Pool] = {"cls": _first, "mean": _mean, "max": _max, "lasttoken": _last}
"""Pooling functions by sentence-transformers' names."""

NAMES_OF_CATALOGUE: Mapping[str, str] = {"cls": "cls", "last_token": "lasttoken"}
"""sentence-transformers' names of the catalogue's poolings."""

NAMES_OF_SETTING: Mapping[str, str] = {"cls": "cls", "mean": "mean", "last": "lasttoken"}
"""sentence-transformers' names of the values of the setting `pooling`."""


def one_row_a_text(
    kind: Rows, pooling: str | None, batch: TokenBatch, rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Computes one vector per text from the rows of a batch.

    Args:
        kind: The kind of rows.
        pooling: The pooling of token rows, a key of `TOKEN_POOLINGS`. `None`: mean.
        batch: The engine's input.
        rows: The engine's output.

    Returns:
        float32, shape [texts, width].
    """
    if kind != "tokens":
        return rows
    return pool_tokens(rows, batch.lengths, pooling or "mean", batch.prompt_lengths)


def cosines(left: NDArray[Float], right: NDArray[Float]) -> NDArray[Float]:
    """Returns the cosine of each row of `left` with the same row of `right`, shape [rows]."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: NDArray[Float] = np.einsum("td,td->t", left, right) / norms
    return found


def pool_tokens(
    rows: NDArray[np.float32],
    lengths: NDArray[np.int64],
    pooling: str,
    prompt_lengths: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Pools the rows of every text.

    Args:
        rows: Concatenated hidden states of all texts, shape [tokens, width].
        lengths: Tokens of each text, shape [texts].
        pooling: A key of `TOKEN_POOLINGS`.
        prompt_lengths: Leading tokens of each text to leave out, fewer than its tokens, shape [texts].

    Returns:
        float32, shape [texts, width].
    """
    if prompt_lengths is not None and prompt_lengths.any():
        places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows, lengths = rows[places >= np.repeat(prompt_lengths, lengths)], lengths - prompt_lengths
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return TOKEN_POOLINGS[pooling](rows, starts, lengths)
