"""The enhanced decoder: one layer whose positions each see a part of the text of their own. Imports torch."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from bge_integrations.backend.engines.architecture import EncoderShape

__all__ = ["EnhancedDecoder"]


class EnhancedDecoder(nn.Module):
    """A layer of BERT's kind (normalisation after each part) with separate inputs for queries, and for keys and values.

    Tokens are rows without padding; only attention is padded.
    """

    def __init__(self, shape: EncoderShape, *, dropout: float, attention_dropout: float, spread: float) -> None:
        """Makes a layer with new weights.

        Args:
            shape: The encoder's shape.
            dropout: Part of the numbers of a row that are set to 0 in training.
            attention_dropout: The same of attention.
            spread: Standard deviation of new weights.
        """
        super().__init__()
        width, inner = shape.hidden_size, shape.feed_forward_size
        self._heads = shape.heads
        self._attention_dropout = attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.dropout = nn.Dropout(dropout)
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=spread)
                nn.init.zeros_(module.bias)

    def forward(self, asked: Tensor, is_asked: Tensor, known: Tensor, is_token: Tensor, seen: Tensor) -> Tensor:
        """Returns a row for each position that asks.

        Args:
            asked: Inputs of the queries, shape [positions that ask, width].
            is_asked: Which positions of the padded texts these are, shape [texts, longest].
            known: Inputs of keys and values, shape [tokens, width].
            is_token: Which positions these are, shape [texts, longest].
            seen: Which tokens a position sees, shape [texts, longest, longest].
        """
        query = self._padded(self.query(asked), is_asked)
        key, value = (self._padded(part(known), is_token) for part in (self.key, self.value))
        context = self._attend(query, key, value, seen[:, None]).transpose(1, 2).flatten(2)[is_asked]
        rows = self.attention_norm(asked + self.dropout(self.output(context)))
        outer = self.outer(functional.gelu(self.inner(rows)))
        found: Tensor = self.output_norm(rows + self.dropout(outer))
        return found

    def _padded(self, rows: Tensor, places: Tensor) -> Tensor:
        """Returns rows as [texts, heads, longest, head size], with zeros elsewhere."""
        padded = rows.new_zeros((*places.shape, rows.shape[-1]))
        padded[places] = rows
        return padded.view(*places.shape, self._heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
        # On the CPU, the backward pass of attention in bfloat16 takes several times as long as in float32.
        on_cpu = query.device.type == "cpu"
        if on_cpu and query.dtype == torch.bfloat16:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False) if on_cpu else contextlib.nullcontext():
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, dropout_p=self._attention_dropout if self.training else 0.0
            )
