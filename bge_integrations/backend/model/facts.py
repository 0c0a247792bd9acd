"""What must be known of a model, beside its weights, to encode texts with it. Plain data that can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.text.tokenizer import Side


@dataclass(frozen=True, kw_only=True)
class DecoderFacts:
    """What must be known of a decoder that scores pairs.

    Attributes:
        prompt: What it was trained to be asked; None for a model that is no BGE reranker, where each user says it.
        first_ids: Ids at the beginning.
        layers: How many it has.
        options: Names of what its forward takes beside tokens.
    """

    prompt: str | None
    first_ids: tuple[int, ...]
    layers: int
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What was found out about a model when a library loaded it.

    Attributes:
        dimension: Length of its vectors.
        max_tokens: The longest text it reads, special tokens included.
        positions: How many tokens it has positions for; None where its positions are unbounded.
        word_rows: Rows of its table of words, which token ids look up; None where it has no such table.
        type_rows: Rows of its table of token types; None where it has none.
        second_type: The type of the tokens of a pair's second text, as its tokenizer gives it; 0 where it makes no
            difference between the texts.
        normalizes: Whether the checkpoint's own modules end in an L2 normalisation.
        normalizes_by_default: Whether its vectors have unit length where the setting `normalize` is None.
        recognized_by: Whether the BGE model that it is or was made from was found by its name or in a record; None for
            any other model. See `catalogue.Recognition`.
        pooling: How hidden states become a vector, by sentence-transformers' name, where that is all that follows
            the transformer; None where the checkpoint's own modules must do it.
        pools_without_prompt: Whether pooling leaves an instruction's tokens out.
        prompts: The prompts saved in the checkpoint, by name.
        default_prompt_name: The prompt for texts without another one.
        unweighted_ids: Ids of the tokens that bge-m3 gives no lexical weight; none for other purposes.
        pad_id: Token id that fills short texts.
        truncation_side: The end at which long texts are cut.
        splits_special_tokens: Whether special tokens that are written in a text are read as plain text.
        encoder: The transformer's shape, if the fast engines know it.
        decoder: Of a decoder that scores pairs; None for everything else. Never in a prepared model.
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
