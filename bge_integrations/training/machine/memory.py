"""How much memory a training takes, and how much is computed. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bge_integrations.backend.engines.architecture import EncoderShape, weight_shapes

__all__ = [
    "DEFAULT_BUDGET",
    "SCORES_AT_ONCE",
    "Budget",
    "Estimate",
    "activation_bytes",
    "decoder_shape",
    "estimate_step",
    "fitting_budget",
]

SCORES_AT_ONCE = 1 << 25
"""Scores of the loss that are in memory at once; a tensor of them has 128 MiB."""

_TENSORS_OF_SCORES = 6
"""Scores, their masks and gradients that are in memory together."""
_BYTES_A_PARAMETER = 16
"""In float32: the weight, its gradient, and the two moments of AdamW."""
# Numbers that a layer keeps for the backward pass: 8 of the hidden size (its input, query, key, value, context, and
# input and output of the first norm, input of the second) and 2 of the feed-forward size. With the masks of dropout and
# lower precision, these are bytes for each of them, measured with torch 2.13.
_BYTES_A_NUMBER = {
    ("cpu", "float32"): 4.7,
    ("cpu", "bfloat16"): 3.4,
    ("cuda", "float32"): 4.7,
    ("cuda", "bfloat16"): 2.5,
}

_CPU_MINI_BATCH = 4096
_CPU_PART_OF_MEMORY = 0.25
_GPU_MINI_BATCH = 65536
_GPU_PART_OF_MEMORY = 0.5
_LEAST_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is computed at once.

    Attributes:
        mini_batch_tokens: Tokens of one forward pass.
        tokens_in_memory: A batch with at most this many tokens is encoded once, with all activations in memory. A
            larger one is encoded twice, with the activations of one forward pass in memory.
        pads: Whether the model computes padding.
    """

    mini_batch_tokens: int
    tokens_in_memory: int
    pads: bool = True


DEFAULT_BUDGET = Budget(mini_batch_tokens=4096, tokens_in_memory=16384)
"""For models of unknown shape."""


def activation_bytes(shape: EncoderShape, tokens: int, *, precision: str, device: str, cls_only: bool = False) -> int:
    """Returns the bytes that the backward pass of a number of tokens needs, rounded up to what dropout adds.

    Args:
        shape: The encoder's shape.
        tokens: The number of tokens, without padding.
        precision: "float32" or "bfloat16".
        device: The kind of device: "cpu" or "cuda".
        cls_only: Whether the last layer computes first rows only.
    """
    numbers = 8 * shape.hidden_size + 2 * shape.feed_forward_size
    # Of the last layer, its input, keys and values are kept.
    kept = (shape.layers - cls_only) * numbers + cls_only * 3 * shape.hidden_size
    return math.ceil(tokens * kept * _BYTES_A_NUMBER.get((device, precision), 4.7))


def decoder_shape(config: Any) -> EncoderShape | None:  # noqa: ANN401 - a configuration of transformers
    """Returns the shape of an encoder that needs as much memory for the backward pass as a decoder.

    The feed-forward part of today's decoders has a gate, so it counts as two. Both sizes are doubled: tensors kept by
    Mistral, Qwen2 and Gemma 2 had 0.9 to 2.4 times the bytes without that, most with adapters in bfloat16.

    Args:
        config: The decoder's configuration. `None` is returned for one without the usual names.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    numbers = [getattr(config, name, None) for name in names]
    if not all(isinstance(number, int) for number in numbers):
        return None
    layers, width, inner, heads = (int(number or 0) for number in numbers)
    return EncoderShape(
        layers=layers,
        hidden_size=2 * width,
        feed_forward_size=4 * inner,
        heads=heads,
        norm_eps=0.0,
        positions_after_padding=False,
        pad_id=0,
        positions=0,
    )


def fitting_budget(
    shape: EncoderShape | None, *, precision: str, device: str, memory: int, cls_only: bool = False
) -> Budget:
    """Returns a budget for a model of a shape on a device."""
    if shape is None:
        return DEFAULT_BUDGET
    part, most = (_GPU_PART_OF_MEMORY, _GPU_MINI_BATCH) if device == "cuda" else (_CPU_PART_OF_MEMORY, _CPU_MINI_BATCH)
    a_thousand = activation_bytes(shape, 1000, precision=precision, device=device, cls_only=cls_only)
    tokens = max(_LEAST_TOKENS, int(memory * part * 1000 / a_thousand))
    return Budget(mini_batch_tokens=min(most, tokens), tokens_in_memory=tokens, pads=False)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step of contrastive training takes on one device.

    Attributes:
        weights: Bytes of weights, gradients and moments.
        activations: Bytes that are kept for the backward pass at once.
        vectors: Bytes of the vectors of the batch and their gradients.
        scores: Bytes of the scores that are in memory at once.
        flops: Floating point operations of the step.
    """

    weights: int
    activations: int
    vectors: int
    scores: int
    flops: float

    @property
    def memory(self) -> int:
        """All bytes."""
        return self.weights + self.activations + self.vectors + self.scores


def estimate_step(
    shape: EncoderShape,
    *,
    words: int,
    queries: int,
    passages: int,
    query_tokens: int,
    passage_tokens: int,
    devices: int = 1,
    mini_batch_tokens: int | None = None,
    precision: str = "bfloat16",
    device: str = "cuda",
    cls_only: bool = True,
) -> Estimate:
    """Returns what a step of `train_embedder` takes on each of some devices.

    Args:
        shape: The encoder's shape.
        words: Rows of the table of word embeddings.
        queries: Queries of the batch on all devices.
        passages: Passages of the batch on all devices, positives and negatives.
        query_tokens: Tokens of a query.
        passage_tokens: Tokens of a passage.
        devices: The number of devices.
        mini_batch_tokens: Tokens of a forward pass, if gradients are cached; `None`: they are not, and all activations
            of a device's part are in memory.
        precision: Of the computation.
        device: The kind of device.
        cls_only: Whether the last layer computes first rows only.

    Returns:
        The estimate for one device. Operations count as 2 for a multiplication with an addition. The backward pass
        counts as two forward passes, and with cached gradients there is one more forward pass.
    """
    parameters = sum(math.prod(size) for size in weight_shapes(shape, words=words, types=2).values())
    own_queries, own_passages = queries / devices, passages / devices
    tokens = own_queries * query_tokens + own_passages * passage_tokens
    at_once = tokens if mini_batch_tokens is None else min(tokens, mini_batch_tokens)
    kept = activation_bytes(shape, math.ceil(at_once), precision=precision, device=device, cls_only=cls_only)
    forward = own_queries * _flops(shape, query_tokens, cls_only=cls_only)
    forward += own_passages * _flops(shape, passage_tokens, cls_only=cls_only)
    loss = 3 * 2 * own_queries * passages * shape.hidden_size
    return Estimate(
        weights=_BYTES_A_PARAMETER * parameters,
        activations=kept,
        vectors=math.ceil(2 * 4 * (own_queries + own_passages + passages) * shape.hidden_size),
        scores=_TENSORS_OF_SCORES * 4 * math.ceil(min(SCORES_AT_ONCE, own_queries * passages)),
        flops=(3 if mini_batch_tokens is None else 4) * forward + loss,
    )


def _flops(shape: EncoderShape, tokens: int, *, cls_only: bool) -> float:
    """Returns the operations of the forward pass of one text."""
    width, inner = shape.hidden_size, shape.feed_forward_size
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    last = 2 * tokens * 2 * width * width + 2 * (2 * width * width + 2 * width * inner) + 4 * tokens * width
    return (shape.layers - cls_only) * layer + cls_only * last
