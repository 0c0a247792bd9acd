"""The engine for every architecture: it runs the modules that sentence-transformers loaded, on padded batches."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Computed, Rows, TokenBatch
from bge_integrations.backend.engines.memory import TensorLimit, memory_errors, rows_of_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

# Seconds for 15,759 tokens by tokens per batch, the minimum of six interleaved runs, with MiniLM on two cores: 256 3.3,
# 512 3.0, 1024 3.2, 2048 3.5, 4096 4.1, 8192 5.8, 16384 7.5. Other load on the machine slows small batches most.
_CPU_BATCH_TOKENS = 2048
_ACCELERATOR_BATCH_TOKENS = 65536


def padded_batch_tokens(device: torch.device) -> int:
    """Returns the best batch size, in tokens with padding, for models that other libraries run."""
    return _CPU_BATCH_TOKENS if device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS


class SentenceTransformersEngine:
    """Calls the checkpoint's own modules."""

    name = "sentence-transformers"
    max_texts: int | None = None
    parallel_batches = 1

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        *,
        device: torch.device,
        pad_id: int,
        rows: Rows,
        pad_to_multiple_of: int = 1,
        output: str = "sentence_embedding",
        token_types: bool = False,
        config: Any = None,  # noqa: ANN401 - one of transformers' many classes, or of a checkpoint's own
    ) -> None:
        """Takes modules that are already on their device.

        Args:
            modules: The transformer and the modules after it.
            device: The device of the modules.
            pad_id: Token id of padding. Padding is masked, so the value does not matter.
            rows: "pooled", or "tokens" for the output of the transformer.
            pad_to_multiple_of: Divisor of the padded length of texts, in tokens.
            output: The feature of the modules that holds the "pooled" rows.
            token_types: Whether the transformer takes token types, which distinguish the texts of a pair.
            config: The transformer's configuration; see `TensorLimit.of_model`.
        """
        self.rows: Rows = rows
        self._output = output if rows == "pooled" else "token_embeddings"
        self._token_types = token_types
        self._modules = tuple(modules)
        self._device = device
        self._pad_id = pad_id
        self._pad_to_multiple_of = pad_to_multiple_of
        self._limit = TensorLimit.of_model(device.type, config, pad_to_multiple_of=pad_to_multiple_of)
        self._lock = threading.Lock()
        self.batch_tokens = padded_batch_tokens(device)

    def submit(self, batch: TokenBatch) -> Computed:
        """See `Engine.submit`. Batches run one at a time, because each uses all cores."""
        with memory_errors(str(self._device)), self._lock, torch.inference_mode():
            return Computed(rows_of_parts(self._limit, batch, self._rows))

    def _rows(self, batch: TokenBatch) -> NDArray[np.float32]:
        lengths = np.unique(batch.prompt_lengths)
        if self.rows == "tokens" or len(lengths) == 1:
            return self._computed(batch, int(lengths[0]))
        # The modules take one prompt length for all texts.
        parts = [np.flatnonzero(batch.prompt_lengths == length) for length in lengths]
        found = [
            self._computed(batch.of(texts, prompt_length=int(length)), int(length))
            for texts, length in zip(parts, lengths, strict=True)
        ]
        return np.concatenate(found)[np.argsort(np.concatenate(parts))]

    def _computed(self, batch: TokenBatch, prompt_length: int) -> NDArray[np.float32]:
        further = ((0, 0), (0, -batch.is_token.shape[1] % self._pad_to_multiple_of))
        ids = np.pad(batch.padded(self._pad_id), further, constant_values=self._pad_id)
        is_token = np.pad(batch.is_token, further)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids.astype(np.int64)).to(self._device),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)).to(self._device),
        }
        if prompt_length:
            features["prompt_length"] = prompt_length
        if self._token_types and batch.is_second is not None:
            is_second = np.pad(batch.is_second, further)
            features["token_type_ids"] = torch.from_numpy(is_second.astype(np.int64)).to(self._device)
        for module in self._modules:
            features = module(features)
        found: torch.Tensor = features[self._output]
        rows: NDArray[np.float32] = found.float().cpu().numpy()
        return rows[is_token] if self.rows == "tokens" else rows

    def abandon(self) -> None:
        """See `Engine.abandon`. On the CPU the model is plain memory, which a child may use."""
