"""What the options of `bge train` ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

from bge_integrations.errors import SettingsError
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import DistillationTraining, EmbedderTraining, Lora, M3Training, RerankerTraining

__all__ = ["Settings", "embedder_of", "lora_of", "settings_of", "shares_of"]

Settings = EmbedderTraining | DistillationTraining | RerankerTraining

_KINDS: dict[str, type[Settings]] = {"m3": M3Training, "reranker": RerankerTraining}
"""Settings by the option that asks for them."""


def settings_of(
    distil_from: str | None,
    *,
    m3: bool = False,
    reranker: bool = False,
    **options: Any,  # noqa: ANN401
) -> Settings:
    """Returns settings with the options that were given; the others keep their defaults.

    Args:
        distil_from: A teacher whose vectors are learned; `None`: queries and passages are trained on.
        m3: Whether all outputs of bge-m3 are trained.
        reranker: Whether a reranker is trained.
        **options: Fields of the settings; `None`: not given.

    Raises:
        SettingsError: An option does not go with the kind of training.
    """
    reasons = {"m3": "from which dense vectors alone learn", "reranker": "since a reranker has no vectors"}
    kinds = [name for name, is_asked in (("m3", m3), ("reranker", reranker)) if is_asked]
    if kinds and distil_from is not None:
        raise SettingsError(
            f"--{kinds[0]} does not go with distil_from={distil_from!r}, {reasons[kinds[0]]}. Leave one of them out."
        )
    if len(kinds) > 1:
        raise SettingsError("--m3 and --reranker train models of different kinds; leave one of them out.")
    kind = _KINDS[kinds[0]] if kinds else EmbedderTraining if distil_from is None else DistillationTraining
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    unknown = next((name for name in given if name not in _fields(kind)), None)
    if unknown is None:
        return kind(**given)
    value = f"{unknown}={given[unknown]!r}"
    if distil_from is not None:
        raise SettingsError(
            f"{value} does not go with distil_from={distil_from!r}; leave it out, since no rows are compared then."
        )
    if reranker:
        raise SettingsError(f"{value} does not go with --reranker; leave it out.")
    if unknown in _fields(M3Training):
        raise SettingsError(f"{value} is of bge-m3's other outputs; add --m3, or leave it out.")
    raise SettingsError(f"{value} is of rerankers; add --reranker, or leave it out.")


def _fields(kind: type[Settings]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def embedder_of(
    start: EncoderSettings, *, reranker: bool, model: str | None, merge: str | None
) -> EncoderSettings | None:
    """Returns settings of the embedding model that finds a reranker's candidates; `None` without a reranker.

    Args:
        start: Settings of the start. Files of both are found in the same way.
        reranker: Whether a reranker is trained.
        model: Hub id or folder of the embedding model.
        merge: The option of that name.

    Raises:
        SettingsError: The model is missing or not needed, or another option does not go with a reranker.
    """
    if not reranker:
        if model is not None:
            raise SettingsError(f"--embedder {model} finds candidates for a reranker; leave it out, or add --reranker.")
        return None
    if model is None:
        raise SettingsError(
            "--reranker needs --embedder, the hub id or folder of the embedding model that finds the passages: a "
            "reranker is judged by how it orders them."
        )
    for name, value in (("merge", merge), ("pooling", start.pooling)):
        if value is not None:
            raise SettingsError(f"{name}={value!r} does not go with a reranker; leave it out.")
    return start.replace(model_name=model, query_instruction=None, revision=None, on_truncation="ignore")


def lora_of(rank: int | None, *, merge: bool) -> Lora | None:
    """Returns the adapter for the rank of `--lora`.

    Raises:
        SettingsError: There is nothing to merge.
    """
    if rank is None and merge:
        raise SettingsError("--lora-merge is of --lora N, which is not given; leave it out, or add --lora 32.")
    return None if rank is None else Lora(rank=rank, merge=merge)


def shares_of(text: str | None) -> tuple[float, ...]:
    """Returns the shares in a text such as "0.3,0.5,0.7".

    Raises:
        SettingsError: A part is no number from 0 to 1.
    """
    shares = []
    for part in (text or "").split(",") if text else ():
        try:
            share = float(part)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise SettingsError(f"merge={text!r}: {part.strip()!r} is no share from 0 to 1, such as 0.5.")
        shares.append(share)
    return tuple(shares)
