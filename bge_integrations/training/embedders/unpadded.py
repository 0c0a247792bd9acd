"""Trains BERT-like encoders without padding, and without what nobody reads of the last layer. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.torch.encoder import UnpaddedEncoder
from bge_integrations.backend.engines.torch.kernel_choice import AttentionKernel

__all__ = ["TrainedEncoder", "without_padding"]


@contextlib.contextmanager
def without_padding(
    model: Any,  # noqa: ANN401 - a SentenceTransformer
    shape: EncoderShape | None,
    *,
    cls_only: bool,
) -> Iterator[None]:
    """Replaces the forward pass of a model's transformer for a block. Vectors and gradients stay the same.

    Args:
        model: A SentenceTransformer whose first module is a transformer.
        shape: The encoder's shape; `None` if it is not BERT-like: then nothing changes.
        cls_only: Whether only the first row of each text is read. Then the last layer computes no other row.
    """
    if shape is None:
        yield
        return
    transformer = model[0]
    transformer.forward = _Forward(transformer, shape, cls_only=cls_only)
    try:
        yield
    finally:
        del transformer.forward


class TrainedEncoder(UnpaddedEncoder):
    """The forward pass with an encoder's weights as they are now, and with its dropout while it trains."""

    def __init__(self, encoder: Any, shape: EncoderShape, *, cls_only: bool) -> None:  # noqa: ANN401
        """Takes a bare model of transformers, and the rest as `UnpaddedEncoder`."""
        super().__init__(dict(encoder.named_parameters()), shape, cls_only=cls_only)
        self._encoder = encoder
        self._dropout = encoder.embeddings.dropout
        self._attention_dropout = encoder.encoder.layer[0].attention.self.dropout

    @property
    def variable_length_attention(self) -> AttentionKernel | None:
        """See `UnpaddedEncoder.variable_length_attention`. The kernel has no dropout."""
        device = self.device.type
        if self._attention_drops or not torch.is_autocast_enabled(device):
            return None
        return self.kernel_for(torch.get_autocast_dtype(device))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """See `UnpaddedEncoder.attend`. On the CPU it is in float32: bfloat16 takes 4 times as long backwards."""
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False) if on_cpu else contextlib.nullcontext():
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=self._attention_drops
            )

    @property
    def _attention_drops(self) -> float:
        return float(self._attention_dropout.p) if self._encoder.training else 0.0

    def dropped(self, rows: torch.Tensor) -> torch.Tensor:
        """See `UnpaddedEncoder.dropped`."""
        return functional.dropout(rows, self._dropout.p, self._encoder.training)


class _Forward:
    """Takes the place of `Transformer.forward`."""

    def __init__(self, transformer: Any, shape: EncoderShape, *, cls_only: bool) -> None:  # noqa: ANN401
        self._encoder = TrainedEncoder(transformer.auto_model, shape, cls_only=cls_only)
        self._output = transformer.module_output_name
        self._cls_only = cls_only

    def __call__(self, features: dict[str, Any], **_: object) -> dict[str, Any]:
        """Adds the hidden states to features, shape [texts, longest, width], or [texts, 1, width] of first rows."""
        mask = features["attention_mask"].bool()
        lengths = mask.sum(1)
        ids = features["input_ids"][mask]
        rows = self._encoder(TokenBatch(_as_numpy(ids, np.int32), _as_numpy(lengths, np.int64)))
        if self._cls_only:
            return {**features, self._output: rows.unsqueeze(1)}
        padded = rows.new_zeros((*mask.shape, rows.shape[1]))
        padded[mask] = rows
        return {**features, self._output: padded}


def _as_numpy(tensor: torch.Tensor, dtype: Any) -> Any:  # noqa: ANN401 - of numpy's many
    return tensor.cpu().numpy().astype(dtype, copy=False)
