"""Heads on an encoder's hidden states: a reranker's score, and the lexical and multi-vector outputs of bge-m3.

They are small compared with the encoder, so numpy computes them in float32 for all engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Rows, TokenBatch

Floats = NDArray[np.float32]
Heads = Mapping[str, Floats]
"""Weights by name. A linear map has `NAME.weight`, shape [out, in], and `NAME.bias`, shape [out]."""

SCORE_DENSE, SCORE_OUT = "score_dense", "score_out"
SPARSE, COLBERT = "sparse", "colbert"

_NORM_FLOOR = np.float32(1e-12)  # as torch.nn.functional.normalize


def unit_rows(rows: Floats) -> Floats:
    """Returns the rows with L2 norm 1, shape [n, width]."""
    # The same numbers as `np.linalg.norm`, which takes three times as long for one row.
    squares: Floats = np.add.reduce(rows * rows, axis=-1, keepdims=True)
    norms: Floats = np.maximum(np.sqrt(squares), _NORM_FLOOR)
    normalized: Floats = rows / norms
    return normalized


def one_score_a_pair(kind: Rows, heads: Heads, rows: Floats) -> Floats:
    """Computes one logit per pair from the rows of a batch.

    transformers' sequence classifiers apply a dense layer, tanh, and a projection to one number to the first row.

    Args:
        kind: "cls", or "pooled" if the rows are already the logits.
        heads: Weights with `SCORE_DENSE` and `SCORE_OUT`.
        rows: The engine's output, shape [pairs, width].

    Returns:
        float32, shape [pairs].
    """
    logits = rows if kind == "pooled" else _linear(heads, SCORE_OUT, np.tanh(_linear(heads, SCORE_DENSE, rows)))
    return logits[:, 0]


@dataclass(frozen=True, eq=False)
class M3Row:
    """The outputs of bge-m3 for one text. Outputs that were not requested are `None`.

    Attributes:
        dense: The vector before normalisation, float32, shape [hidden size].
        token_ids: Token ids, special tokens included, int32, shape [tokens].
        token_weights: Lexical weight of each token, float32, shape [tokens].
        colbert: A vector with L2 norm 1 for each token except the first, float32, shape [tokens - 1, hidden size].
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
    """Computes the requested outputs of bge-m3.

    Formulas: `sparse_embedding` and `colbert_embedding` of FlagEmbedding's `EncoderOnlyEmbedderM3Model`. Paper:
    https://arxiv.org/abs/2402.03216.

    Args:
        heads: Weights with `SPARSE` and `COLBERT`.
        batch: The texts.
        rows: Hidden states of all tokens, shape [tokens, hidden size].
        pooled: Dense vectors before normalisation, shape [texts, hidden size].
        sparse: Whether to compute lexical weights.
        colbert: Whether to compute a vector for each token.

    Returns:
        One `M3Row` per text, shape [texts].
    """
    ends = np.cumsum(batch.lengths)
    weights = np.maximum(_linear(heads, SPARSE, rows)[:, 0], 0) if sparse else None
    vectors = unit_rows(_linear(heads, COLBERT, rows)) if colbert else None
    found = np.empty(len(ends), dtype=object)
    for text, (end, length) in enumerate(zip(ends, batch.lengths, strict=True)):
        start = end - length
        # Copies, because views would keep the whole batch in memory.
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
