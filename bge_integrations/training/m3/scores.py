"""The three scores of bge-m3 for all queries and passages of a batch, with gradients. Imports torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bge_integrations.training.m3.model import TokenRows
from bge_integrations.training.machine.budget import mini_batches

__all__ = ["dense_scores", "lexical_scores", "token_scores"]

_HOW: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


def dense_scores(queries: TokenRows, passages: TokenRows) -> Tensor:
    """Returns the cosine of each query and each passage, shape [queries, passages]."""
    return queries.dense @ passages.dense.T


def lexical_scores(queries: TokenRows, passages: TokenRows) -> Tensor:
    """Returns the sum, over the tokens that both have, of the products of their weights, shape [queries, passages].

    The weight of a token in a text is the greatest of its places. Tables have a column for each token that a query has,
    not for each of the vocabulary: a token without a column adds 0 to every score.
    """
    vocabulary, columns = torch.unique(queries.ids, return_inverse=True)
    found = torch.searchsorted(vocabulary, passages.ids).clamp(max=len(vocabulary) - 1)
    is_shared = vocabulary[found] == passages.ids
    one = _table(queries, columns, torch.ones_like(queries.ids, dtype=torch.bool), len(vocabulary))
    other = _table(passages, found, is_shared, len(vocabulary))
    return one @ other.T


def _table(texts: TokenRows, columns: Tensor, is_taken: Tensor, width: int) -> Tensor:
    """Returns the greatest weight of each token in each text, 0 for a token that is not there."""
    places = (texts.owners * width + columns)[is_taken]
    empty = texts.rows.new_zeros(len(texts.lengths) * width)
    return empty.scatter_reduce(0, places, texts.weights[is_taken], "amax").view(len(texts.lengths), width)


def token_scores(queries: TokenRows, passages: TokenRows, at_once: int) -> Tensor:
    """Returns the mean, over a query's token vectors, of the greatest cosine with one of the passage's.

    The first token of a text has no token vector. Products of token vectors are computed in blocks of passages. Those
    of a block are forgotten, and computed again in the backward pass.

    Args:
        queries: The queries.
        passages: The passages.
        at_once: Products that are in memory at once, if one passage does not need more.

    Returns:
        Shape [queries, passages].
    """
    is_vector = torch.ones(len(queries.ids), dtype=torch.bool, device=queries.ids.device)
    is_vector[queries.starts] = False
    asked, owners = queries.rows[is_vector, :-1], queries.owners[is_vector]
    lengths, order = (passages.lengths - 1).sort(stable=True)
    starts = passages.starts[order] + 1
    # The blocks are padded, so that there may be any amount of padding in one.
    blocks = mini_batches(lengths.tolist(), max(1, at_once // max(len(asked), 1)), at_once)
    best = torch.cat(
        [
            checkpoint(_greatest, asked, passages.rows, starts[begin:end], lengths[begin:end], **_HOW)
            for begin, end in blocks
        ],
        1,
    )
    best = best[:, order.argsort()]
    sums = best.new_zeros((len(queries.lengths), best.shape[1])).index_add(0, owners, best)
    return sums / (queries.lengths - 1).unsqueeze(1)


def _greatest(asked: Tensor, rows: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Returns the greatest product of each vector with one of each passage, shape [vectors, passages]."""
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    is_token = steps < lengths.unsqueeze(1)
    places = torch.where(is_token, starts.unsqueeze(1) + steps, 0)
    vectors = rows[places.flatten(), :-1]
    products = (asked @ vectors.T).view(len(asked), *places.shape)
    return products.masked_fill(~is_token, -math.inf).max(-1).values
