"""The engine that runs every architecture: the modules that sentence-transformers loaded, on padded batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

# Least of six interleaved runs over 15,759 tokens with MiniLM on two cores, in seconds: 256 tokens a batch 3.3, 512
# 3.0, 1024 3.2, 2048 3.5, 4096 4.1, 8192 5.8, 16384 7.5. On a machine that others use too the small ones lose most.
_CPU_BATCH_TOKENS = 2048
_ACCELERATOR_BATCH_TOKENS = 65536


class SentenceTransformersEngine:
    """Calls the checkpoint's own modules, leaving out a closing L2 normalisation, which belongs to the encoder."""

    name = "sentence-transformers"

    def __init__(self, modules: Sequence[torch.nn.Module], *, device: torch.device, pad_id: int) -> None:
        """Takes modules that are already on their device.

        Args:
            modules: Transformer first, then pooling and whatever the checkpoint lists, without a closing Normalize.
            device: Where they are.
            pad_id: Token id to fill short rows with; masked out, so its value never matters.
        """
        self._modules = tuple(modules)
        self._device = device
        self._pad_id = pad_id
        self.default_batch_tokens = _CPU_BATCH_TOKENS if device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS

    @torch.inference_mode()
    def pool(self, batch: TokenBatch) -> NDArray[np.float32]:
        """See `Engine.pool`."""
        features: dict[str, Any] = {
            name: torch.from_numpy(array).to(self._device) for name, array in self._padded(batch.ids).items()
        }
        if batch.prompt_length:
            features["prompt_length"] = batch.prompt_length
        for module in self._modules:
            features = module(features)
        pooled: torch.Tensor = features["sentence_embedding"]
        return pooled.float().cpu().numpy()

    def _padded(self, ids: list[list[int]]) -> dict[str, NDArray[np.int64]]:
        width = max(map(len, ids))
        input_ids = np.full((len(ids), width), self._pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(ids), width), dtype=np.int64)
        for row, text in enumerate(ids):
            input_ids[row, : len(text)] = text
            attention_mask[row, : len(text)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}
