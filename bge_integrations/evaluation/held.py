"""Encoders and rerankers of this package, alone or inside an adapter: what they are, and what they have computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.calls.handle import ModelHandle
from bge_integrations.encoder import BgeEncoder

__all__ = ["Work", "described", "held_by", "name_of"]


def held_by(it: object | None) -> ModelHandle[Any] | None:
    """Returns the encoder or reranker that an object is, or that an adapter of this package holds; else `None`."""
    candidates = (it, *(getattr(it, name, None) for name in ("encoder", "reranker")))
    return next((candidate for candidate in candidates if isinstance(candidate, ModelHandle)), None)


@dataclass(frozen=True)
class Work:
    """What loaded models have computed so far; `None` where no model of this package takes part."""

    tokens: int | None = None
    truncated: int | None = None

    @classmethod
    def of(cls, *them: object | None) -> Work:
        """Returns the work of the models that some objects hold. It loads models that are not loaded yet."""
        held = [handle for it in them if (handle := held_by(it)) is not None]
        stats = [handle.stats() for handle in {id(handle.backend): handle for handle in held}.values()]
        return cls(sum(one.tokens for one in stats), sum(one.truncated_texts for one in stats)) if stats else cls()

    def since(self, before: Work) -> Work:
        """Returns the work after an earlier moment."""
        if self.tokens is None or self.truncated is None:
            return self
        return Work(self.tokens - (before.tokens or 0), self.truncated - (before.truncated or 0))


def described(it: object | None) -> Mapping[str, Any]:
    """Returns what an object is, as plain data: its class and, for a model of this package, all that matters of it."""
    held = held_by(it)
    if held is None:
        return {"class": "candidates" if it is None else type(it).__name__}
    asked = getattr(it, "query_encoder", held)  # an adapter's queries can have settings of their own
    backend = held.backend
    if isinstance(asked, BgeEncoder):
        instruction = asked.instruction("query").prefix
    else:
        instruction = held.settings.query_instruction or ""
    return {
        "class": type(it).__name__,
        "model": held.settings.model_name,
        "content": backend.identity,
        "engine": backend.engine.name,
        "precision": backend.request.precision,
        "device": backend.device,
        "max_length": held.max_length,
        "query_instruction": instruction,
    }


def name_of(searcher: object | None, reranker: object | None) -> str:
    """Returns a name for reports, made of the names of models and classes."""
    parts = []
    for it in (searcher, reranker):
        held = held_by(it)
        if held is not None:
            precision = held.backend.request.precision
            model = str(held.settings.model_name).rstrip("/").rpartition("/")[2]
            parts.append(model if precision == "float32" else f"{model} {precision}")
        elif it is not None:
            parts.append(getattr(it, "name", None) or type(it).__name__)
    return " + ".join(parts) or "candidates"
