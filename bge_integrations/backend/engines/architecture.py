"""The encoders that the fast engines know: their architectures, shapes and names of weights.

BERT and the RoBERTa family differ only in the index of the first position, so one description serves all of them. The
sentence-transformers engine runs all other encoders: those with another activation, with relative positions, or with
adapters injected into the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Table = TypeVar("Table", NDArray[np.float32], "torch.Tensor")


@dataclass(frozen=True)
class Architecture:
    """A kind of encoder.

    Attributes:
        model_class: transformers' class of the bare model.
        positions_after_padding: Whether positions start after the padding index, as in fairseq.
        prefix: Prefix of the encoder's weights in transformers' models that have a head.
        classifier_class: transformers' class of the encoder with a classifier on the first row.
        classifier_dense: Name of that class's dense layer, which tanh follows.
        classifier_out: Name of that class's last projection.
    """

    model_class: str
    positions_after_padding: bool
    prefix: str
    classifier_class: str
    classifier_dense: str = "classifier.dense"
    classifier_out: str = "classifier.out_proj"


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(
        "BertModel", False, "bert.", "BertForSequenceClassification", "bert.pooler.dense", "classifier"
    ),
    "roberta": Architecture("RobertaModel", True, "roberta.", "RobertaForSequenceClassification"),
    "xlm-roberta": Architecture("XLMRobertaModel", True, "roberta.", "XLMRobertaForSequenceClassification"),
    "camembert": Architecture("CamembertModel", True, "roberta.", "CamembertForSequenceClassification"),
}
"""By the `model_type` of config.json."""

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
EMBEDDING_NORM = "embeddings.LayerNorm"
QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
ATTENTION_OUTPUT, ATTENTION_NORM = "attention.output.dense", "attention.output.LayerNorm"
FEED_FORWARD, OUTPUT, OUTPUT_NORM = "intermediate.dense", "output.dense", "output.LayerNorm"
_LAYER_PARTS = (QUERY, KEY, VALUE, ATTENTION_OUTPUT, ATTENTION_NORM, FEED_FORWARD, OUTPUT, OUTPUT_NORM)
_UNUSED_PREFIXES = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """An encoder's shape.

    Attributes:
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        feed_forward_size: Width inside the feed-forward part of a layer.
        heads: Number of attention heads.
        norm_eps: Number added to the variance in layer normalisation.
        positions_after_padding: Whether the first position has the index `pad_id + 1` instead of 0.
        pad_id: Token id of padding.
        positions: Rows of the position table.
        token_types: Number of token types in use: 2 if the model reads pairs and has two types, else 1.
    """

    layers: int
    hidden_size: int
    feed_forward_size: int
    heads: int
    norm_eps: float
    positions_after_padding: bool
    pad_id: int
    positions: int
    token_types: int = 1

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    @property
    def longest_text(self) -> int:
        """Most tokens of a text that have a position: rows before the first position are never used."""
        return self.positions - (self.pad_id + 1 if self.positions_after_padding else 0)

    @property
    def layer_weights(self) -> int:
        """Number of weights in the matrices of all layers."""
        return self.layers * self.hidden_size * (4 * self.hidden_size + 2 * self.feed_forward_size)

    def position_tables(self, positions: Table, types: Table) -> list[Table]:
        """Adds the token types to the position table.

        Args:
            positions: The position table, shape [positions, hidden size].
            types: The table of token types, shape [at least token_types, hidden size].

        Returns:
            A table for each type. `position_rows` gives rows of their concatenation.
        """
        return [positions + types[kind] for kind in range(self.token_types)]

    def position_rows(self, ids: NDArray[np.int32], is_second: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """Returns the row of each token in the concatenated tables of `position_tables`.

        If positions start after the padding index, a padding token has that index and is not counted, even inside a
        text (`create_position_ids_from_input_ids` in transformers' modeling_xlm_roberta.py).

        Args:
            ids: Token ids, padded with `pad_id`, shape [texts, tokens].
            is_second: Mask of the second texts of pairs, shape [texts, tokens]; `None` for single texts.

        Returns:
            int32, shape [texts, tokens], or [1, tokens] if all texts have the same rows.
        """
        rows: NDArray[np.int32]
        if self.positions_after_padding:
            is_token = (ids != self.pad_id).astype(np.int32)
            rows = np.cumsum(is_token, axis=1, dtype=np.int32) * is_token + self.pad_id
        else:
            rows = np.arange(ids.shape[1], dtype=np.int32)[None]
        if is_second is None or self.token_types == 1:
            return rows
        return rows + is_second.astype(np.int32) * np.int32(self.positions)


def layer_weight(layer: int, part: str, kind: str = "weight") -> str:
    """Returns the name of a layer's weight."""
    return f"encoder.layer.{layer}.{part}.{kind}"


def encoder_shape(config: Mapping[str, Any], *, reads_pairs: bool = False) -> EncoderShape | None:
    """Returns the shape of an encoder; `None` if the fast engines do not know it.

    Args:
        config: The complete content of config.json.
        reads_pairs: Whether the model reads pairs of texts. Their tokens then have different types if it has two types.
    """
    known = ARCHITECTURES.get(config["model_type"])
    plain = (
        config["hidden_act"] == "gelu"
        and config.get("position_embedding_type", "absolute") in ("absolute", None)
        and not config.get("is_decoder", False)
        and not config.get("add_cross_attention", False)
    )
    if known is None or not plain:
        return None
    return EncoderShape(
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        feed_forward_size=config["intermediate_size"],
        heads=config["num_attention_heads"],
        norm_eps=config["layer_norm_eps"],
        positions_after_padding=known.positions_after_padding,
        pad_id=config["pad_token_id"] or 0,
        positions=config["max_position_embeddings"],
        token_types=min(config["type_vocab_size"], 2) if reads_pairs else 1,
    )


def describe_encoder(model: torch.nn.Module, *, reads_pairs: bool = False) -> EncoderShape | None:
    """Returns the shape of a transformers model; `None` if the fast engines do not know it.

    Args:
        model: A model from `AutoModel.from_pretrained`.
        reads_pairs: As for `encoder_shape`.
    """
    config: Any = model.config
    known = ARCHITECTURES.get(config.model_type)
    kind = type(model)
    # A class from the checkpoint's own code may have the same name.
    if known is None or kind.__name__ != known.model_class or not kind.__module__.startswith("transformers.models."):
        return None
    shape = encoder_shape(config.to_dict(), reads_pairs=reads_pairs)
    names = {name for name in model.state_dict() if not name.startswith(_UNUSED_PREFIXES)}
    return shape if shape and names == weight_shapes(shape, words=0, types=0).keys() else None


def weight_shapes(shape: EncoderShape, *, words: int, types: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight of an encoder, by name in transformers' state dict.

    Args:
        shape: The encoder's shape.
        words: Rows of the word embedding table.
        types: Rows of the token type table.
    """
    width, inner = shape.hidden_size, shape.feed_forward_size
    shapes: dict[str, tuple[int, ...]] = {
        WORDS: (words, width),
        POSITIONS: (shape.positions, width),
        TOKEN_TYPES: (types, width),
        **_weight_and_bias(EMBEDDING_NORM, (width,)),
    }
    of_part = {ATTENTION_NORM: (width,), OUTPUT_NORM: (width,), FEED_FORWARD: (inner, width), OUTPUT: (width, inner)}
    for layer in range(shape.layers):
        for part in _LAYER_PARTS:
            shapes |= _weight_and_bias(f"encoder.layer.{layer}.{part}", of_part.get(part, (width, width)))
    return shapes


def _weight_and_bias(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
