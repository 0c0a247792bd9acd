"""A model laid out like bge-m3 for where the real one can't be had: all-MiniLM-L6-v2 with two heads made on the spot.

- Token vectors are its hidden states as they are.
- Lexical weights are fitted: ridge regression of a token's inverse document frequency in the standard library's
  docstrings on its hidden state, so that rare words weigh more than common ones, in whatever text they stand.

It shows what three ways of retrieval do together, on real weights. What bge-m3 itself can do it does not show.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.batching import plan_batches
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.catalogue import M3_HEAD_FILES
from bge_integrations.encoder import BgeEncoder

_FITTED_TEXTS = 400
_RIDGE = 0.1
_BATCH_TOKENS = 1024
_MOST_TOKENS = 128


def make_m3_stand_in(weights: Path, texts: Sequence[str], folder: Path) -> Path:
    """Makes it, unless it is there.

    Args:
        weights: The folder of a BERT-like sentence-transformers model.
        texts: What inverse document frequencies are counted on; the first few hundred are also fitted on.
        folder: Where to.

    Returns:
        The folder.
    """
    heads = folder / M3_HEAD_FILES["sparse"]
    if heads.is_file():
        return folder
    import torch

    shutil.copytree(weights, folder, dirs_exist_ok=True)
    with BgeEncoder(weights, device="cpu", on_truncation="ignore") as encoder:
        weight, bias = _fit(encoder, texts)
        width = encoder.dimension
    vectors = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    torch.save(vectors, folder / M3_HEAD_FILES["colbert"])
    torch.save({"weight": torch.from_numpy(weight[None]), "bias": torch.tensor([bias])}, heads)
    return folder


def _fit(encoder: BgeEncoder, texts: Sequence[str]) -> tuple[NDArray[np.float32], float]:
    """Returns the weight, shape [hidden size], and the bias of the map from a hidden state to its token's rarity."""
    model = encoder.backend
    tokens = model.tokenizer.tokenize(texts, _MOST_TOKENS)
    rarity = _inverse_document_frequencies([tokens.of(np.array([text])) for text in range(len(texts))])
    states, wanted = [], []
    for indices in plan_batches(tokens.lengths[:_FITTED_TEXTS], batch_tokens=_BATCH_TOKENS):
        batch = TokenBatch(tokens.of(indices), tokens.lengths[indices])
        states.append(model.engine.submit(batch).result())
        wanted.append(np.array([rarity[token] for token in batch.ids.tolist()]))
    rows = np.concatenate(states).astype(np.float64)
    inputs = np.column_stack([rows, np.ones(len(rows))])
    normal = inputs.T @ inputs + _RIDGE * np.eye(inputs.shape[1])
    fitted = np.linalg.solve(normal, inputs.T @ np.concatenate(wanted))
    return fitted[:-1].astype(np.float32), float(fitted[-1])


def _inverse_document_frequencies(documents: Sequence[NDArray[np.int32]]) -> dict[int, float]:
    """Returns log(1 + (n - d + 0.5) / (d + 0.5)) for each token that d of n documents have, as BM25 weighs it."""
    counts: dict[int, int] = {}
    for document in documents:
        for token in set(document.tolist()):
            counts[token] = counts.get(token, 0) + 1
    return {token: float(np.log1p((len(documents) - count + 0.5) / (count + 0.5))) for token, count in counts.items()}
