"""The properties of a model, other than its weights, that encoding needs. Plain data that can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.text.tokenizer import Side


@dataclass(frozen=True, kw_only=True)
class DecoderFacts:
    """The properties of a decoder that scores pairs.

    Attributes:
        prompt: The prompt of its training; `None` for a model that is not a BGE reranker, where the user sets it.
        first_ids: Ids at the start of each pair.
        layers: Number of layers.
        options: Names of the inputs that its `forward` takes in addition to tokens.
    """

    prompt: str | None
    first_ids: tuple[int, ...]
    layers: int
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The properties of a model.

    Attributes:
        dimension: Length of the vectors.
        max_tokens: Tokens of the longest text that the model reads, special tokens included.
        positions: Number of positions; `None` if it is unlimited.
        word_rows: Rows of the word embedding table, which token ids index; `None` without such a table.
        type_rows: Rows of the token type table; `None` without such a table.
        second_type: Token type of a pair's second text, from the tokenizer; 0 if both texts have the same type.
        normalizes: Whether the checkpoint's own modules end with an L2 normalisation.
        normalizes_by_default: Whether the vectors have unit length if the setting `normalize` is `None`.
        recognized_by: The way in which the BGE model, or the BGE base model, was recognised: by its name or from a
            record. `None` for any other model. See `catalogue.Recognition`.
        pooling: sentence-transformers' name of the pooling, if only pooling follows the transformer; `None` if the
            checkpoint's own modules must run.
        pools_without_prompt: Whether pooling leaves the tokens of the instruction out.
        prompts: The prompts saved in the checkpoint, by name.
        default_prompt_name: Name of the prompt for texts without another prompt.
        unweighted_ids: Ids of tokens without a lexical weight in bge-m3; empty for other purposes.
        pad_id: Token id of padding.
        truncation_side: The end at which long texts are cut.
        splits_special_tokens: Whether the names of special tokens in a text are read as plain text.
        encoder: The transformer's shape, if the fast engines know it.
        decoder: The properties of a decoder that scores pairs; `None` for other models. Never in a prepared model.
    """

    dimension: int
    max_tokens: int
    positions: int | None
    word_rows: int | None
    type_rows: int | None
    second_type: int
    normalizes: bool
    normalizes_by_default: bool
    recognized_by: Literal["name", "record"] | None
    pooling: str | None
    pools_without_prompt: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    unweighted_ids: tuple[int, ...]
    pad_id: int
    truncation_side: Side
    splits_special_tokens: bool
    encoder: EncoderShape | None
    decoder: DecoderFacts | None = None
