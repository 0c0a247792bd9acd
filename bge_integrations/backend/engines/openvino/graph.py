"""An encoder as an OpenVINO graph, built operation by operation from its weights.

A trace of transformers' model would contain its masks, its pooler and its whole last layer. This graph contains only
the operations that the output needs:

- Query, key and value are one matrix product. The rows of the token types are added to the position table beforehand.
- For CLS rows, the last layer has one query row q. Then `scores = X (W_k^T q)` and `context = W_v (sum_j p_j x_j)`, so
  no key and no value is computed. The key bias adds the same number to every score, which does not change the softmax.
  The probabilities have the sum 1, so the value bias is added once.

The input has the rows of the table of words, which is not in the graph (see `words`).

Weights may be in int8, with one float32 scale for all numbers that make one output. OpenVINO multiplies them as they
are, and rounds activations in groups while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import architecture as names
from bge_integrations.backend.engines.architecture import EncoderShape, layer_weight
from bge_integrations.backend.engines.openvino.library import op, ov
from bge_integrations.backend.engines.openvino.rounding import rounded_to_int8
from bge_integrations.backend.engines.openvino.words import WordTable

Weights = Mapping[str, NDArray[np.float32]]
_Node = Any  # openvino types its operations as Node and as Output, which accept each other everywhere

MASKED = np.float32(-1e9)
"""Added to the attention scores of padding: far below any score, and also finite in bfloat16."""

Int8Weights = Literal["all", "attention output", "outputs"]
"""Which weights are in int8: all matrices and tables; or the words and only the product behind the attention, or also
the one behind the GELU."""

# How the names of the products end. The name of the product behind the attention ends like the other one, too.
_INT8_PRODUCTS: Mapping[Int8Weights | None, tuple[str, ...]] = {
    "attention output": (names.ATTENTION_OUTPUT,),
    "outputs": (names.OUTPUT,),
}


@dataclass(frozen=True, eq=False)
class EncoderGraph:
    """An encoder as OpenVINO runs it.

    Attributes:
        model: The graph. Its inputs are `words` (float32 [texts, tokens, hidden size], the rows of the tokens),
            `positions` (int32 [texts or 1, tokens]) and `mask` (float32 [texts, 1, 1, tokens], 0 for tokens and
            `MASKED` for padding). Its output is `rows`, float32, shape [texts, hidden size] or [texts, tokens, hidden
            size].
        words: The table of words.
        forget_weights: Gives the memory of the graph's weights back, if they are in a file, which is read again when
            they are needed. An engine has its own copy of them in the form that it computes with.
    """

    model: ov.Model
    words: WordTable
    forget_weights: Callable[[], None] = lambda: None


def build_graph(
    weights: Weights, shape: EncoderShape, *, cls_only: bool, int8: Int8Weights | None = None
) -> EncoderGraph:
    """Builds the graph.

    Args:
        weights: The state dict of the transformers model, float32.
        shape: The encoder's shape.
        cls_only: Whether the output is the first row of every text instead of all rows.
        int8: Weights that are rounded to int8; `None`: none.
    """
    words = WordTable.of(weights[names.WORDS], int8=int8 is not None)
    return EncoderGraph(_Builder(weights, shape, int8=int8).build(cls_only=cls_only), words)


class _Builder:
    def __init__(self, weights: Weights, shape: EncoderShape, *, int8: Int8Weights | None) -> None:
        self._weights = weights
        self._shape = shape
        self._int8 = int8

    def build(self, *, cls_only: bool) -> ov.Model:
        words = op.parameter([-1, -1, self._shape.hidden_size], ov.Type.f32, name="words")
        positions = op.parameter([-1, -1], ov.Type.i32, name="positions")
        mask = op.parameter([-1, 1, 1, -1], ov.Type.f32, name="mask")
        hidden = self._embed(words, positions)
        for layer in range(self._shape.layers - cls_only):
            hidden = self._rest_of_layer(layer, self._attend(layer, hidden, mask), hidden)
        if cls_only:
            hidden = self._last_layer_of_first_row(hidden, mask)
        result = op.result(hidden, name="rows")
        result.output(0).get_tensor().set_names({"rows"})
        return ov.Model([result], [words, positions, mask], "encoder")

    def _embed(self, words: _Node, positions: _Node) -> _Node:
        tables = self._shape.position_tables(self._weights[names.POSITIONS], self._weights[names.TOKEN_TYPES])
        rows = op.gather(self._matrix(np.concatenate(tables)), positions, _integers(0))
        return self._normalized(op.add(words, rows), names.EMBEDDING_NORM)

    def _attend(self, layer: int, hidden: _Node, mask: _Node) -> _Node:
        """Returns the context of every row, before the output projection, shape [texts, tokens, hidden size]."""
        shape = self._shape
        fused = [
            np.concatenate(
                [self._weights[layer_weight(layer, part, kind)] for part in (names.QUERY, names.KEY, names.VALUE)]
            )
            for kind in ("weight", "bias")
        ]
        projected = op.add(op.matmul(hidden, self._matrix(fused[0]), False, True), _floats(fused[1]))
        query, key, value = (
            op.transpose(op.reshape(part, _integers(0, 0, shape.heads, shape.head_size), True), _integers(0, 2, 1, 3))
            for part in op.split(projected, _integer(2), 3).outputs()
        )
        scale = op.constant(np.float32(shape.head_size**-0.5))
        context = op.scaled_dot_product_attention(query, key, value, mask, scale)
        return op.reshape(op.transpose(context, _integers(0, 2, 1, 3)), _integers(0, 0, shape.hidden_size), True)

    def _last_layer_of_first_row(self, hidden: _Node, mask: _Node) -> _Node:
        shape, layer = self._shape, self._shape.layers - 1
        heads, width, head_size = shape.heads, shape.hidden_size, shape.head_size
        weight = {part: self._weights[layer_weight(layer, part)] for part in (names.QUERY, names.KEY, names.VALUE)}
        bias = {part: self._weights[layer_weight(layer, part, "bias")] for part in (names.QUERY, names.VALUE)}
        first = op.squeeze(op.slice(hidden, _integers(0), _integers(1), _integers(1), _integers(1)), _integers(1))
        scale = np.float32(head_size**-0.5)
        query = op.add(
            op.matmul(first, self._matrix(weight[names.QUERY] * scale), False, True),
            _floats(bias[names.QUERY] * scale),
        )
        by_head = op.reshape(query, _integers(0, heads, 1, head_size), True)
        key = self._matrix(weight[names.KEY].reshape(1, heads, head_size, width), summed=-2)
        keys = op.matmul(by_head, key, False, False)
        scores = op.matmul(op.squeeze(keys, _integers(2)), hidden, False, True)  # [texts, heads, tokens]
        probabilities = op.softmax(op.add(scores, op.squeeze(mask, _integers(1))), -1)
        mixed = op.unsqueeze(op.matmul(probabilities, hidden, False, False), _integers(2))
        value = self._matrix(weight[names.VALUE].reshape(1, heads, head_size, width))
        context = op.matmul(mixed, value, False, True)
        flat = op.add(op.reshape(context, _integers(0, width), True), _floats(bias[names.VALUE]))
        return self._rest_of_layer(layer, flat, first)

    def _rest_of_layer(self, layer: int, context: _Node, residual: _Node) -> _Node:
        prefix = f"encoder.layer.{layer}."
        attended = op.add(self._linear(context, prefix + names.ATTENTION_OUTPUT), residual)
        hidden = self._normalized(attended, prefix + names.ATTENTION_NORM)
        inner = op.gelu(self._linear(hidden, prefix + names.FEED_FORWARD), "erf")
        return self._normalized(op.add(self._linear(inner, prefix + names.OUTPUT), hidden), prefix + names.OUTPUT_NORM)

    def _linear(self, rows: _Node, name: str) -> _Node:
        weight = self._weights[f"{name}.weight"]
        int8 = name.endswith(_INT8_PRODUCTS.get(self._int8, ()))
        product = op.matmul(rows, _rounded(weight) if int8 else self._matrix(weight), False, True)
        return op.add(product, _floats(self._weights[f"{name}.bias"]))

    def _normalized(self, rows: _Node, name: str) -> _Node:
        centred = op.mvn(rows, _integers(-1), True, self._shape.norm_eps, "inside_sqrt")
        scaled = op.multiply(centred, _floats(self._weights[f"{name}.weight"]))
        return op.add(scaled, _floats(self._weights[f"{name}.bias"]))

    def _matrix(self, values: NDArray[np.float32], summed: int = -1) -> _Node:
        """Returns a matrix of a product, which sums over the axis `summed`, or a table of rows."""
        return _rounded(values, summed) if self._int8 == "all" else _floats(values)


def _rounded(values: NDArray[np.float32], summed: int = -1) -> _Node:
    """Returns values in int8, times their scales."""
    rounded, scale = rounded_to_int8(values, summed)
    return op.multiply(op.convert(op.constant(rounded), np.float32), op.constant(scale))


def _floats(values: NDArray[np.float32]) -> _Node:
    return op.constant(np.ascontiguousarray(values, dtype=np.float32))


def _integers(*values: int) -> _Node:
    return op.constant(np.array(values, dtype=np.int64))


def _integer(value: int) -> _Node:
    return op.constant(np.int64(value))
