"""The engine of the unpadded encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Computed, PendingRows, Rows, TokenBatch
from bge_integrations.backend.engines.memory import TensorLimit, memory_errors, rows_of_parts
from bge_integrations.backend.engines.torch.encoder import FrozenEncoder
from bge_integrations.backend.engines.torch.graphs import GraphCache
from bge_integrations.backend.engines.torch.launches import CudaLaunches, Launches
from bge_integrations.backend.guarantees.forks import ForkSafeLock

# A forward pass of this size fills a current GPU. A larger one only takes memory and delays queries.
_MOST_ACCELERATOR_TOKENS = 16384
# One H100 computes first rows faster in batches of this size than of 16,384 tokens: by 18 % for small-en, 7 % for
# base-en, 4 % for large-en. The scheduler cuts batches by time, so queries wait no longer.
_MOST_TOKENS_OF_FIRST_ROWS = 65536
_CPU_TOKENS = 1024
# Numbers per token in memory during a layer, in multiples of the hidden size: input and output of the activation
# (4 + 4), query, key and value (3), residual, its sum, context and a norm (4).
_LIVE_WIDTHS = 15


class TorchEngine:
    """A BERT-like encoder on unpadded batches.

    Attributes:
        graphs: The graphs that compute small batches on CUDA; `None` without the kernel that they need.
    """

    name = "torch"
    max_texts: int | None = None

    def __init__(
        self, model: torch.nn.Module, shape: EncoderShape, *, rows: Rows, launches: Launches | None = None
    ) -> None:
        """Takes a model that is already on its device and in its precision.

        Args:
            model: A model that `describe_encoder` knows.
            shape: The encoder's shape.
            rows: "cls" or "tokens".
            launches: Access to a GPU. `None`: by torch, if the model is on CUDA.
        """
        self.rows: Rows = rows
        self._encoder = encoder = FrozenEncoder(model, shape, cls_only=rows == "cls")
        self._device = self._encoder.device
        on_cpu = self._device.type == "cpu"
        if launches is None and self._device.type == "cuda":
            launches = CudaLaunches(self._device)
        self._launches = launches
        self.graphs: GraphCache | None = None
        if launches is not None and encoder.variable_length_attention is not None:
            self.graphs = GraphCache(
                launches, lambda inputs: encoder.rows(inputs).float(), shape, rows_are_texts=rows == "cls"
            )
        # A GPU computes in the order of submission. On the CPU, several batches may run in parallel.
        self._turn: AbstractContextManager[object] = nullcontext() if launches is None and on_cpu else ForkSafeLock()
        self._limit = TensorLimit.of(self._device.type, heads=shape.heads, width=shape.feed_forward_size)
        self.parallel_batches = 1 if on_cpu else 2
        self.batch_tokens = _CPU_TOKENS if on_cpu else self._tokens_that_fit(shape)

    def submit(self, batch: TokenBatch) -> PendingRows:
        """See `Engine.submit`. On CUDA it returns as soon as the work is queued on the device."""
        with memory_errors(str(self._device)), self._turn:
            if self._launches is not None:
                with self._launches.stream():
                    replayed = self.graphs.submit(batch) if self.graphs is not None else None
                    return replayed or _Arriving(self._encoder(batch).float(), self._launches)
            return Computed(rows_of_parts(self._limit, batch, lambda part: self._encoder(part).float().cpu().numpy()))

    def abandon(self) -> None:
        """See `Engine.abandon`. On the CPU the model is plain memory, which a child may use."""
        if self.graphs is not None:
            self.graphs.abandon()

    def close(self) -> None:
        """Frees what the engine keeps on a GPU beside the model. Later batches only take longer."""
        # In a forked child graphs are off, and torch does not even select a stream there.
        if self._launches is not None and self.graphs is not None and self.graphs.is_on:
            with self._turn, self._launches.stream():
                self.graphs.close()

    def _tokens_that_fit(self, shape: EncoderShape) -> int:
        if self._device.type != "cuda":
            return _MOST_ACCELERATOR_TOKENS
        free, _ = torch.cuda.mem_get_info(self._device)
        is_lean = self.rows == "cls" and self.graphs is not None  # rows of all tokens, and masks, take much memory
        most = _MOST_TOKENS_OF_FIRST_ROWS if is_lean else _MOST_ACCELERATOR_TOKENS
        bytes_per_token = _LIVE_WIDTHS * shape.hidden_size * self._encoder.dtype.itemsize
        return max(512, min(most, free // 2 // bytes_per_token))


class _Arriving:
    """Rows that a GPU copies into pinned memory after it has computed them."""

    def __init__(self, rows: torch.Tensor, launches: Launches) -> None:
        self._host = launches.pinned(rows.numel(), torch.float32).view(rows.shape)
        self._mark = launches.fetch(rows, self._host, aside=True)
        self._device = str(launches.device)

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`."""
        with memory_errors(self._device):
            self._mark.wait()
        return self._host.numpy()
