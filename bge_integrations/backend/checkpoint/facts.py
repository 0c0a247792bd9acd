"""Makes the facts of a model from its parts, which come from a library or from the files alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.model.facts import DecoderFacts, ModelFacts
from bge_integrations.backend.text.tokenizer import Side, TextTokenizer
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import UnsupportedModelError


@dataclass(frozen=True)
class Lookups:
    """Sizes of the embedding tables, and how texts are read; as in `ModelFacts`."""

    positions: int | None
    word_rows: int | None
    type_rows: int | None
    pad_id: int
    truncation_side: Side
    splits_special_tokens: bool

    @classmethod
    def of(
        cls, tokenizer: TextTokenizer, *, positions: int | None, word_rows: int | None, type_rows: int | None
    ) -> Lookups:
        """Collects them. Sets the tokenizer's `pad_id` to 0 if the padding token has no embedding."""
        if word_rows is not None and tokenizer.pad_id >= word_rows:
            tokenizer.pad_id = 0  # any token can pad, since padding is masked out
        return cls(
            positions,
            word_rows,
            type_rows,
            tokenizer.pad_id,
            tokenizer.truncation_side,
            tokenizer.splits_special_tokens,
        )


def vector_facts(
    checkpoint: Checkpoint,
    spec: ModelSpec | None,
    lookups: Lookups,
    *,
    max_length: int | None,
    dimension: int,
    normalizes: bool,
    pooling: str | None,
    pools_without_prompt: bool,
    prompts: Mapping[str, str | None],
    default_prompt_name: str | None,
    encoder: EncoderShape | None,
) -> ModelFacts:
    """Returns the facts of a model that gives vectors.

    Args:
        checkpoint: The model's files.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        lookups: Sizes of the embedding tables.
        max_length: Tokens per text at which sentence-transformers cuts; `None` if it does not cut.
        dimension: As in `ModelFacts`, like all arguments below.
        normalizes: Whether the checkpoint's own modules end in an L2 normalisation.
        pooling: Name of the pooling.
        pools_without_prompt: Whether pooling leaves out an instruction's tokens.
        prompts: Saved prompts by name.
        default_prompt_name: Name of the prompt for texts without another one.
        encoder: Shape of the transformer, if the fast engines know it.
    """
    recognition = checkpoint.recognition
    follows_own_files = recognition is None or (recognition.by == "record" and checkpoint.modules is not None)
    return ModelFacts(
        dimension=dimension,
        max_tokens=_least(max_length, lookups.positions, spec.max_tokens if spec and not follows_own_files else None),
        second_type=0,
        normalizes=normalizes,
        normalizes_by_default=normalizes or not follows_own_files,
        recognized_by=recognition.by if recognition else None,
        pooling=pooling,
        pools_without_prompt=pools_without_prompt,
        prompts=_texts(prompts),
        default_prompt_name=default_prompt_name,
        unweighted_ids=(),
        encoder=encoder,
        **dataclasses.asdict(lookups),
    )


def score_facts(
    checkpoint: Checkpoint,
    spec: ModelSpec | None,
    lookups: Lookups,
    *,
    max_length: int | None,
    second_type: int,
    prompts: Mapping[str, str | None],
    default_prompt_name: str | None,
    encoder: EncoderShape | None,
    decoder: DecoderFacts | None = None,
) -> ModelFacts:
    """Returns the facts of a model that scores pairs.

    Args:
        checkpoint: The model's files.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        lookups: Sizes of the embedding tables.
        max_length: Tokens per pair.
        second_type: Token type of a pair's second text.
        prompts: Saved prompts by name.
        default_prompt_name: Name of the prompt for pairs without another one.
        encoder: Shape of the transformer, if the fast engines know it.
        decoder: Facts of a decoder; `None` for an encoder.
    """
    return ModelFacts(
        dimension=1,
        max_tokens=_least(max_length, lookups.positions, spec.max_tokens if spec else None),
        second_type=second_type,
        normalizes=False,
        normalizes_by_default=False,
        recognized_by=checkpoint.recognition.by if checkpoint.recognition else None,
        pooling=None if decoder else "cls",
        pools_without_prompt=False,
        prompts=_texts(prompts),
        default_prompt_name=default_prompt_name,
        unweighted_ids=(),
        encoder=encoder,
        decoder=decoder,
        **dataclasses.asdict(lookups),
    )


def require_room(name: str, limit: int, taken: int) -> None:
    """Refuses a token limit that leaves no room for a text.

    Raises:
        UnsupportedModelError: The special tokens alone reach the limit.
    """
    if limit <= taken:
        raise UnsupportedModelError(
            f"{name} can't be used: it reads {limit} tokens, which leaves no room beside its {taken} special tokens. "
            "Check model_max_length in tokenizer_config.json, max_position_embeddings in config.json, and "
            "max_seq_length and processing_kwargs in sentence_bert_config.json."
        )


def _texts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text or "" for name, text in prompts.items()}


def _least(*limits: int | None) -> int:
    known: Iterable[int] = [int(limit) for limit in limits if limit]
    return min(known, default=sys.maxsize)
