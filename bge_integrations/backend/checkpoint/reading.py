"""How a model reads texts, from its files without the weights: for a model that runs on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bge_integrations._optional import is_installed
from bge_integrations.backend.checkpoint.contents import module_class
from bge_integrations.backend.checkpoint.describe import (
    TransformerSettings,
    saved_prompts,
    saved_tokenizer,
    transformer_settings,
)
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.plainness import NotPlainError
from bge_integrations.backend.engines.architecture import ARCHITECTURES
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue import Recognition
from bge_integrations.settings import Purpose

logger = get_logger(__name__)

_UNBOUNDED = 10**9
"""transformers writes a greater number for a tokenizer without a limit."""


@dataclass(frozen=True)
class Reading:
    """The tokenizer of a model, and what its files say about texts.

    Attributes:
        tokenizer: The tokenizer.
        max_tokens: Tokens of the longest text that the model reads; `None` if the files do not say.
        prompts: The saved prompts by name.
        default_prompt_name: Name of the prompt for texts without another prompt.
        recognition: The BGE model that it is or was made from; `None` for any other model.
        has_modules: Whether sentence-transformers saved it.
        dimension: Length of its vectors; `None` if it is not known.
    """

    tokenizer: TextTokenizer
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    recognition: Recognition | None = None
    has_modules: bool = False
    dimension: int | None = None


def read_texts(folder: Path, name: str, purpose: Purpose) -> Reading | None:
    """Reads a model's files except the weights.

    Args:
        folder: Folder with the tokenizer, and with the model's other files if they are there.
        name: The model's name as the user wrote it.
        purpose: Use of the model.

    Returns:
        `None` if no tokenizer can be made of the files.

    Raises:
        ModelLoadError: A JSON file is damaged.
    """
    checkpoint = Checkpoint(folder, name)
    scores, has_modules = purpose == "scores", checkpoint.modules is not None
    try:
        settings, prompts, default = TransformerSettings(), dict[str, str | None](), None
        if has_modules:
            prompts, default = saved_prompts(folder, "CrossEncoder" if scores else "SentenceTransformer")
            settings = transformer_settings(
                checkpoint.transformer_folder, "sequence-classification" if scores else "feature-extraction"
            )
        saved = saved_tokenizer(checkpoint, settings)
    except NotPlainError as reason:
        logger.info("%s: its tokenizer is loaded by transformers, since %s", name, reason)
        return _read_with_transformers(checkpoint)
    limits = (settings.max_length or saved.model_max_length, _positions(checkpoint.config))
    return Reading(
        saved.tokenizer,
        min((limit for limit in limits if limit), default=None),
        {name: text or "" for name, text in prompts.items()},
        default,
        checkpoint.recognition,
        has_modules,
        _dimension(checkpoint),
    )


def _dimension(checkpoint: Checkpoint) -> int | None:
    changes = any(module_class(module["type"]) == "Dense" for module in checkpoint.modules or ())
    width = checkpoint.config.get("hidden_size")
    return width if isinstance(width, int) and not changes else None


def _positions(config: Mapping[str, object]) -> int | None:
    """Returns the number of positions that a text can have."""
    known, positions, pad_id = (
        ARCHITECTURES.get(str(config.get("model_type"))),
        config.get("max_position_embeddings"),
        config.get("pad_token_id") or 0,
    )
    if not isinstance(positions, int) or not isinstance(pad_id, int):
        return None
    return positions - (pad_id + 1 if known is not None and known.positions_after_padding else 0)


def _read_with_transformers(checkpoint: Checkpoint) -> Reading | None:
    if not is_installed("transformers"):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.transformer_folder), local_files_only=True)
        text_tokenizer = TextTokenizer.copy_of(tokenizer)
    except Exception as error:  # from files of any model
        logger.info("%s: transformers can't load its tokenizer: %s", checkpoint.name, error)
        return None
    limit = tokenizer.model_max_length
    known = limit if isinstance(limit, int) and limit < _UNBOUNDED else None
    return Reading(text_tokenizer, known, recognition=checkpoint.recognition, dimension=_dimension(checkpoint))
