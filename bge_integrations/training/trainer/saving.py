"""Saves a trained model, so that this package, sentence-transformers and people know what it is. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.errors import SettingsError

__all__ = ["RECORD", "require_free", "set_prompts", "write_card", "write_model", "write_record"]

RECORD = "bge_training.json"
"""File in a trained folder: what it was trained from, on what, and how."""

_HEADERS = {
    "embedder": ("sentence-transformers", "sentence-similarity", ("sentence-transformers", "feature-extraction")),
    "reranker": ("sentence-transformers", "text-ranking", ("sentence-transformers", "cross-encoder", "reranker")),
}
"""The library, the hub's task and the tags of a card, by the record's `kind`. A record without one is an embedder's."""


def require_free(output: Path) -> None:
    """Checks that a folder can be written, before anything is computed.

    Raises:
        SettingsError: There is something in it already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(
            f"output={str(output)!r} has content already, which is never overwritten; name another folder."
        )


def write_model(model: Any, output: Path) -> None:  # noqa: ANN401
    """Writes weights, modules and tokenizer. The library's card is left out: it embeds texts, and asks the hub."""
    output.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(str(output), create_model_card=False)


def set_prompts(model: Any, asked: Instruction) -> None:  # noqa: ANN401
    """Sets what the model's folders have as prompts.

    Args:
        model: The SentenceTransformer.
        asked: The text around a query. What is before it becomes the prompt "query". A prompt can't say what follows a
            text. So if something does, the prompt is empty, and the catalogue's template of the base model is used.
    """
    model.prompts = {"query": "" if asked.suffix else asked.prefix, "document": ""}
    model.default_prompt_name = None


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a training, and the card that is made of it."""
    (output / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(output, record)


def write_card(output: Path, record: Mapping[str, Any]) -> None:
    """Writes README.md: the base model in its header, the data, the settings, and the figures before and after."""
    base, data, settings = record["base_model"], record.get("data"), record.get("settings", {})
    library, pipeline, tags = _HEADERS[record.get("kind", "embedder")]
    lines = ["---", *([f"base_model: {base}"] if base else []), f"library_name: {library}"]
    lines += [f"pipeline_tag: {pipeline}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    lines += [f"# {output.name}", "", f"{_origin(record)} with bge-integrations.", ""]
    if "query_instruction" in record:
        instruction = record["query_instruction"]
        lines += [f"The text before a query is {instruction!r}." if instruction else "Queries have no instruction."]
        lines += [f"The text after it is {record['after_query']!r}."] if "after_query" in record else []
        lines += ["Documents have none."]
    if "pretrained" in record:
        lines += ["Its vectors give no useful similarity before contrastive training."]
    if data:
        lines += [f"Data: {data['rows']} rows, digest {data['digest']}."]
    if settings:
        lines += [
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in settings.items()),
        ]
    verdict = record.get("verdict")
    if verdict:
        lines += ["", verdict]
    (output / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _origin(record: Mapping[str, Any]) -> str:
    merged = record.get("merged")
    if merged:
        return "The weighted mean of " + ", ".join(f"{one['model']} ({one['weight']:g})" for one in merged) + ", made"
    teacher = record.get("distilled_from")
    if teacher:
        return f"Made from {record['started_from']}, to give the vectors of {teacher},"
    if "pretrained" in record:
        return f"Pre-trained by {record['pretrained']} from {record['started_from']}"
    return f"Fine-tuned from {record['started_from']}"
