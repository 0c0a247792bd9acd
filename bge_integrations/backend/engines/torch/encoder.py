"""The forward pass of a BERT-like encoder over unpadded rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bge_integrations.backend.engines import architecture as names
from bge_integrations.backend.engines.architecture import EncoderShape, layer_weight
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.torch.kernel_choice import (
    AttentionKernel,
    attention_kernel,
    fastest_operations,
)
from bge_integrations.backend.engines.torch.layout import EqualLengths, Layout, OneBlock
from bge_integrations.backend.engines.torch.operations import Norm, Operations, TorchOperations

_QKV = (names.QUERY, names.KEY, names.VALUE)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a forward pass, on the device. They are views of one tensor, so that one copy brings them there.

    Attributes:
        ids: Token ids of all texts, int32, shape [tokens].
        positions: Their rows in the position table, int32, shape [tokens].
        ends: 0 and the end of each text among the tokens, int32, shape [texts + 1].
        longest: At least the tokens of the longest text.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    longest: int

    @classmethod
    def of(cls, packed: torch.Tensor, tokens: int, longest: int) -> Inputs:
        """Returns the views of a tensor that holds what `packed` returns."""
        return cls(packed[:tokens], packed[tokens : 2 * tokens], packed[2 * tokens :], longest)


def packed(batch: TokenBatch, shape: EncoderShape) -> NDArray[np.int32]:
    """Returns the inputs of a batch one after the other, int32, shape [2 * tokens + texts + 1]; see `Inputs`."""
    rows = shape.position_rows(batch.padded(shape.pad_id), batch.is_second)
    positions = np.broadcast_to(rows, batch.is_token.shape)[batch.is_token]
    return np.concatenate([batch.ids, positions, [0], np.cumsum(batch.lengths)], dtype=np.int32, casting="same_kind")


class UnpaddedEncoder:
    """Computes hidden states with the weights of a transformers model. Gradients reach the weights.

    Attributes:
        shape: The encoder's shape.
        folds_last_keys: Whether the last layer avoids keys and values if only first rows are wanted.
        operations: The computations between the matrix products.
    """

    folds_last_keys = False
    operations: Operations = TorchOperations()

    def __init__(self, weights: Mapping[str, torch.Tensor], shape: EncoderShape, *, cls_only: bool) -> None:
        """Takes the weights.

        Args:
            weights: By their names in transformers' bare model.
            shape: The encoder's shape.
            cls_only: Whether the output is the first row of every text instead of all rows.
        """
        self.shape = shape
        self._cls_only = cls_only
        self._weights = weights

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Runs a batch.

        Returns:
            Shape [texts, width] if `cls_only`, else [tokens, width]; on the device.
        """
        inputs = Inputs.of(self._to_device(packed(batch, self.shape)), len(batch.ids), longest=int(batch.lengths.max()))
        return self.rows(inputs, None if self.variable_length_attention else _layout(batch, self.device))

    def rows(self, inputs: Inputs, layout: Layout | None = None) -> torch.Tensor:
        """Runs a batch that is on the device.

        Args:
            inputs: The batch.
            layout: The layout of its texts during attention. `None`: the kernel for texts of different lengths is used.

        Returns:
            What `__call__` returns.
        """
        attention = _Blocks(self, layout) if layout else _VariableLengths(self, inputs)
        hidden = self.dropped(
            self.operations.embedded(
                inputs.ids,
                inputs.positions,
                self._weights[names.WORDS],
                self.positions,
                self._norm(names.EMBEDDING_NORM),
            )
        )
        for layer in range(self.shape.layers - self._cls_only):
            hidden = self._rest_of_layer(layer, attention.all_rows(layer, hidden), hidden)
        if self._cls_only:
            first = hidden[inputs.ends[:-1]]
            last = self.shape.layers - 1
            hidden = self._rest_of_layer(last, attention.first_rows(last, hidden, first), first)
        return hidden

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weights[names.WORDS].device

    @property
    def positions(self) -> torch.Tensor:
        """The concatenated tables of `EncoderShape.position_tables`."""
        return torch.cat(self.shape.position_tables(self._weights[names.POSITIONS], self._weights[names.TOKEN_TYPES]))

    @property
    def variable_length_attention(self) -> AttentionKernel | None:
        """The kernel of torch for texts of different lengths; `None` where it does not work."""
        return self.kernel_for(self._weights[names.WORDS].dtype)

    def kernel_for(self, dtype: torch.dtype) -> AttentionKernel | None:
        """Returns the kernel for queries, keys and values of a precision; `None` where it does not work."""
        return attention_kernel(self.device, dtype, self.shape.head_size)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the contexts of queries, all of shape [texts, heads, queries or keys, head size]."""
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def dropped(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the rows, some of their numbers set to 0 in training."""
        return rows

    def project(self, layer: int, hidden: torch.Tensor, parts: slice) -> torch.Tensor:
        """Applies the query, key and value projections, or a slice of these three."""
        weights, biases = zip(*(self.weight_and_bias(layer, part) for part in _QKV[parts]), strict=True)
        return functional.linear(hidden, torch.cat(weights), torch.cat(biases))

    def weight_and_bias(self, layer: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weight and bias of a linear map in a layer."""
        return self._weights[layer_weight(layer, part)], self._weights[layer_weight(layer, part, "bias")]

    def _rest_of_layer(self, layer: int, context: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        prefix = f"encoder.layer.{layer}."
        attended = self.dropped(functional.linear(context, *self.weight_and_bias(layer, names.ATTENTION_OUTPUT)))
        hidden = self.operations.added(attended, residual, self._norm(prefix + names.ATTENTION_NORM))
        inner = self.operations.activated(hidden, *self.weight_and_bias(layer, names.FEED_FORWARD))
        outer = self.dropped(functional.linear(inner, *self.weight_and_bias(layer, names.OUTPUT)))
        return self.operations.added(outer, hidden, self._norm(prefix + names.OUTPUT_NORM))

    def _norm(self, name: str) -> Norm:
        return Norm(self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self.shape.norm_eps)

    def _to_device(self, values: NDArray[np.int32]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        # From pinned memory, the copy runs while the CPU prepares the next batch.
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )


class FrozenEncoder(UnpaddedEncoder):
    """The forward pass without gradients, with a model's own weights and without a copy of them.

    Only query, key and value move: into one tensor. The model's parameters become views of it, so the model still works
    and no weight is held twice.
    """

    folds_last_keys = True

    def __init__(self, model: torch.nn.Module, shape: EncoderShape, *, cls_only: bool) -> None:
        """Takes a model as `TorchEngine` does. With `cls_only` the output is the first row of every text."""
        self._qkv = [_fuse(model, layer) for layer in range(shape.layers)]
        super().__init__(
            {name: tensor.detach() for name, tensor in model.state_dict().items()}, shape, cls_only=cls_only
        )
        self._positions = super().positions
        self.dtype = self._positions.dtype
        self.operations = fastest_operations(self.device, self.dtype, shape.hidden_size)
        self._kernel = super().variable_length_attention

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Runs a batch. The output has the model's precision."""
        return super().__call__(batch)

    @torch.inference_mode()
    def rows(self, inputs: Inputs, layout: Layout | None = None) -> torch.Tensor:
        """See `UnpaddedEncoder.rows`."""
        return super().rows(inputs, layout)

    @property
    def positions(self) -> torch.Tensor:
        """See `UnpaddedEncoder.positions`."""
        return self._positions

    @property
    def variable_length_attention(self) -> AttentionKernel | None:
        """See `UnpaddedEncoder.variable_length_attention`."""
        return self._kernel

    def project(self, layer: int, hidden: torch.Tensor, parts: slice) -> torch.Tensor:
        """See `UnpaddedEncoder.project`."""
        width = self.shape.hidden_size
        weight, bias = self._qkv[layer]
        rows = slice((parts.start or 0) * width, (3 if parts.stop is None else parts.stop) * width)
        return functional.linear(hidden, weight[rows], bias[rows])


class _Blocks:
    """Attention block by block. A block holds whole texts of one padded length."""

    def __init__(self, encoder: UnpaddedEncoder, layout: Layout) -> None:
        self._encoder = encoder
        self._layout = layout

    def all_rows(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        shape = self._encoder.shape
        contexts = []
        for block in self._layout.blocks(self._encoder.project(layer, hidden, slice(None))):
            texts, longest, _ = block.shape
            query, key, value = block.view(texts, longest, 3, shape.heads, shape.head_size).permute(2, 0, 3, 1, 4)
            context = self._encoder.attend(query, key, value, self._layout.mask)
            contexts.append(context.transpose(1, 2).reshape(texts, longest, shape.hidden_size))
        return self._layout.join(contexts)

    def first_rows(self, layer: int, hidden: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Attends from one row per text."""
        if self._encoder.folds_last_keys:
            return self._folded(layer, hidden, first)
        shape = self._encoder.shape
        queries = self._encoder.project(layer, first, slice(0, 1)).view(-1, 1, shape.heads, shape.head_size)
        contexts, done = [], 0
        for block in self._layout.blocks(self._encoder.project(layer, hidden, slice(1, 3))):
            texts, longest, _ = block.shape
            key, value = block.view(texts, longest, 2, shape.heads, shape.head_size).permute(2, 0, 3, 1, 4)
            query = queries[done : done + texts].transpose(1, 2)
            contexts.append(self._encoder.attend(query, key, value, self._layout.mask).reshape(texts, -1))
            done += texts
        return torch.cat(contexts)

    def _folded(self, layer: int, hidden: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Attends from one row per text without keys and values; see the formulas in `openvino/graph.py`."""
        shape = self._encoder.shape
        heads, width = shape.heads, shape.hidden_size
        query = self._encoder.project(layer, first, slice(0, 1)) * shape.head_size**-0.5
        by_head = query.view(-1, heads, shape.head_size).transpose(0, 1)
        key_weight, _ = self._encoder.weight_and_bias(layer, names.KEY)
        keys = torch.bmm(by_head, key_weight.view(heads, shape.head_size, width)).transpose(0, 1)
        mixed, done = [], 0
        for block in self._layout.blocks(hidden):
            texts = block.shape[0]
            scores = torch.bmm(keys[done : done + texts], block.transpose(1, 2))
            if self._layout.mask is not None:
                scores = scores.masked_fill(~self._layout.mask[:, 0], float("-inf"))
            mixed.append(torch.bmm(scores.softmax(-1), block))
            done += texts
        value_weight, value_bias = self._encoder.weight_and_bias(layer, names.VALUE)
        by_head = torch.cat(mixed).transpose(0, 1)
        context = torch.bmm(by_head, value_weight.view(heads, shape.head_size, width).transpose(1, 2))
        return context.transpose(0, 1).reshape(-1, width) + value_bias


class _VariableLengths:
    """Attention in one kernel that takes the end of each text."""

    def __init__(self, encoder: UnpaddedEncoder, inputs: Inputs) -> None:
        self._encoder = encoder
        kernel = encoder.variable_length_attention
        if kernel is None:
            raise AssertionError("a batch without a layout needs the kernel")
        self._kernel = kernel
        self._ends = inputs.ends
        self._longest = inputs.longest
        self._one_each = torch.arange(len(self._ends), dtype=torch.int32, device=self._ends.device)

    def all_rows(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self._heads(self._encoder.project(layer, hidden, slice(None)))
        return self._attend(query, key, value, self._ends, self._longest)

    def first_rows(self, layer: int, hidden: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        (query,) = self._heads(self._encoder.project(layer, first, slice(0, 1)))
        key, value = self._heads(self._encoder.project(layer, hidden, slice(1, 3)))
        return self._attend(query, key, value, self._one_each, 1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, longest_query: int
    ) -> torch.Tensor:
        context = self._kernel(query, key, value, query_ends, self._ends, longest_query, self._longest)
        return context.reshape(-1, self._encoder.shape.hidden_size)

    def _heads(self, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape = self._encoder.shape
        return projected.view(len(projected), -1, shape.heads, shape.head_size).unbind(1)


def _layout(batch: TokenBatch, device: torch.device) -> Layout:
    return OneBlock(batch, device) if device.type == "cuda" else EqualLengths(batch.lengths)


def _fuse(model: torch.nn.Module, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies query, key and value of a layer into one tensor and makes the model's parameters views of it."""
    fused = []
    for kind in ("weight", "bias"):
        parameters = [model.get_parameter(layer_weight(layer, part, kind)) for part in _QKV]
        together = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, together.chunk(3), strict=True):
            parameter.data = part
        fused.append(together)
    return fused[0], fused[1]
