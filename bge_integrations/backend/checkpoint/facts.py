"""What is known of a model once its parts are known, whoever found them out: a library, or its files alone."""

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
    """The tables that texts look up, and how texts are read; as in `ModelFacts`."""

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
        """Takes what is known; sees to it that padding has an embedding."""
        if word_rows is not None and tokenizer.pad_id >= word_rows:
            tokenizer.pad_id = 0  # it is masked out
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
    """Returns what is known of a model that gives vectors.

    Args:
        checkpoint: Its files.
        spec: The catalogue's row, or None for a model that is no BGE.
        lookups: Its tables.
        max_length: Tokens per text, as sentence-transformers would cut them; None where it would not.
        dimension: As in `ModelFacts`, like the others below.
        normalizes: Whether its own modules end in an L2 normalisation.
        pooling: How hidden states become a vector.
        pools_without_prompt: Whether pooling leaves an instruction's tokens out.
        prompts: The saved prompts.
        default_prompt_name: The prompt for texts without another one.
        encoder: The transformer's shape, if the fast engines know it.
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
    """Returns what is known of a model that scores pairs.

    Args:
        checkpoint: Its files.
        spec: The catalogue's row, or None for a model that is no BGE.
        lookups: Its tables.
        max_length: Tokens per pair.
        second_type: The type of the tokens of a pair's second text.
        prompts: The saved prompts.
        default_prompt_name: The prompt for pairs without another one.
        encoder: The transformer's shape, if the fast engines know it.
        decoder: Of a decoder, what is known of it.
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
    """Refuses a limit that leaves no room for a text.

    Raises:
        UnsupportedModelError: Special tokens alone take all of it.
    """
    if limit <= taken:
        raise UnsupportedModelError(
            f"{name} can't be used: it reads {limit} tokens, which leaves no room beside its {taken} special tokens. "
            "See model_max_length in tokenizer_config.json, max_position_embeddings in config.json, and max_seq_length "
            "and processing_kwargs in sentence_bert_config.json."
        )


def _texts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text or "" for name, text in prompts.items()}


def _least(*limits: int | None) -> int:
    known: Iterable[int] = [int(limit) for limit in limits if limit]
    return min(known, default=sys.maxsize)
