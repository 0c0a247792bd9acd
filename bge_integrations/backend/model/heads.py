"""What stands on an encoder's hidden states: a reranker's score, and the lexical and multi-vector outputs of bge-m3.

They are small beside the encoder, so numpy computes them, in float32, whatever runs the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Rows, TokenBatch

Floats = NDArray[np.float32]
Heads = Mapping[str, Floats]
"""Weights by name; a linear map has `NAME.weight`, shape [out, in], and `NAME.bias`, shape [out]."""

SCORE_DENSE, SCORE_OUT = "score_dense", "score_out"
SPARSE, COLBERT = "sparse", "colbert"

_NORM_FLOOR = np.float32(1e-12)  # as torch.nn.functional.normalize


def unit_rows(rows: Floats) -> Floats:
    """Returns rows of length 1, shape [n, width]."""
    normalized: Floats = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _NORM_FLOOR)
    return normalized


def one_score_a_pair(kind: Rows, heads: Heads, rows: Floats) -> Floats:
    """Turns what an engine gave for a batch into one logit a pair.

    On the first row, transformers' sequence classifiers put a dense layer, tanh, and a projection to one number.

    Args:
        kind: What the engine gives: "cls", or "pooled" where that is the logit already.
        heads: With `SCORE_DENSE` and `SCORE_OUT`.
        rows: What it gave, shape [pairs, width].

    Returns:
        float32, shape [pairs].
    """
    logits = rows if kind == "pooled" else _linear(heads, SCORE_OUT, np.tanh(_linear(heads, SCORE_DENSE, rows)))
    return logits[:, 0]


@dataclass(frozen=True, eq=False)
class M3Row:
    """What bge-m3 says of one text.

    Attributes:
        dense: Its vector, before normalisation, float32, shape [hidden size].
        token_ids: Its tokens, special ones included, int32, shape [tokens].
        token_weights: The lexical weight of each, float32, shape [tokens]; None if not asked for.
        colbert: A vector of length 1 for each token but the first, float32, shape [tokens - 1, hidden size]; None if
            not asked for.
    """

    dense: Floats
    token_ids: NDArray[np.int32]
    token_weights: Floats | None
    colbert: Floats | None

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinity."""
        parts = (self.dense, self.token_weights, self.colbert)
        return all(bool(np.isfinite(part).all()) for part in parts if part is not None)


def m3_rows(
    heads: Heads, batch: TokenBatch, rows: Floats, pooled: Floats, *, sparse: bool = True, colbert: bool = True
) -> NDArray[np.object_]:
    """Computes what was asked for of bge-m3's outputs.

    Formulas: `sparse_embedding` and `colbert_embedding` of FlagEmbedding's `EncoderOnlyEmbedderM3Model`; the paper is
    https://arxiv.org/abs/2402.03216.

    Args:
        heads: With `SPARSE` and `COLBERT`.
        batch: The texts.
        rows: The hidden states of their tokens, shape [tokens, hidden size].
        pooled: Their dense vectors, before normalisation, shape [texts, hidden size].
        sparse: Compute lexical weights.
        colbert: Compute a vector for each token.

    Returns:
        An `M3Row` a text, shape [texts].
    """
    ends = np.cumsum(batch.lengths)
    weights = np.maximum(_linear(heads, SPARSE, rows)[:, 0], 0) if sparse else None
    vectors = unit_rows(_linear(heads, COLBERT, rows)) if colbert else None
    found = np.empty(len(ends), dtype=object)
    for text, (end, length) in enumerate(zip(ends, batch.lengths, strict=True)):
        start = end - length
        # Copies, since views would keep the whole batch in memory.
        found[text] = M3Row(
            pooled[text].copy(),
            batch.ids[start:end].copy(),
            None if weights is None else weights[start:end].copy(),
            None if vectors is None else vectors[start + 1 : end].copy(),
        )
    return found


def _linear(heads: Heads, name: str, rows: Floats) -> Floats:
    product: Floats = rows @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]
    return product
