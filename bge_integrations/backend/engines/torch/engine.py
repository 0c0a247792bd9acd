"""The engine of the unpadded encoder."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Computed, PendingRows, Rows, TokenBatch
from bge_integrations.backend.engines.memory import TensorLimit, memory_errors, rows_of_parts
from bge_integrations.backend.engines.torch.encoder import FrozenEncoder

# A forward pass of this size fills a current GPU. A larger one only takes memory and delays queries.
_MOST_ACCELERATOR_TOKENS = 16384
_CPU_TOKENS = 1024
# Numbers per token in memory during a layer, in multiples of the hidden size: input and output of the activation
# (4 + 4), query, key and value (3), residual, its sum, context and a norm (4).
_LIVE_WIDTHS = 15


class TorchEngine:
    """A BERT-like encoder on unpadded batches."""

    name = "torch"
    max_texts: int | None = None

    def __init__(self, model: torch.nn.Module, shape: EncoderShape, *, rows: Rows) -> None:
        """Takes a model that is already on its device and in its precision.

        Args:
            model: A model that `describe_encoder` knows.
            shape: The encoder's shape.
            rows: "cls" or "tokens".
        """
        self.rows: Rows = rows
        self._encoder = FrozenEncoder(model, shape, cls_only=rows == "cls")
        self._device = self._encoder.device
        on_cpu = self._device.type == "cpu"
        # A GPU computes in the order of submission. On the CPU, several batches may run in parallel.
        self._turn: AbstractContextManager[object] = nullcontext() if on_cpu else threading.Lock()
        self._limit = TensorLimit.of(self._device.type, heads=shape.heads, width=shape.feed_forward_size)
        self.parallel_batches = 1 if on_cpu else 2
        self.batch_tokens = _CPU_TOKENS if on_cpu else self._tokens_that_fit(shape)

    def submit(self, batch: TokenBatch) -> PendingRows:
        """See `Engine.submit`. On CUDA it returns as soon as the work is queued on the device."""
        with memory_errors(self._device.type), self._turn:
            if self._device.type == "cuda":
                return _Arriving(self._encoder(batch))
            return Computed(rows_of_parts(self._limit, batch, lambda part: self._encoder(part).float().cpu().numpy()))

    def abandon(self) -> None:
        """See `Engine.abandon`. On the CPU the model is plain memory, which a child may use."""

    def _tokens_that_fit(self, shape: EncoderShape) -> int:
        if self._device.type != "cuda":
            return _MOST_ACCELERATOR_TOKENS
        free, _ = torch.cuda.mem_get_info(self._device)
        bytes_per_token = _LIVE_WIDTHS * shape.hidden_size * self._encoder.dtype.itemsize
        return max(512, min(_MOST_ACCELERATOR_TOKENS, free // 2 // bytes_per_token))


class _Arriving:
    """Rows that a GPU copies into pinned memory after it has computed them."""

    def __init__(self, rows: torch.Tensor) -> None:
        with torch.inference_mode():
            self._host = torch.empty(rows.shape, dtype=torch.float32, pin_memory=True)
            self._host.copy_(rows.float(), non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(rows.device))

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`."""
        with memory_errors("cuda"):
            self._arrived.synchronize()
        return self._host.numpy()
