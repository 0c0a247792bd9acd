"""Adapters such as LoRA: folders with a small change of another model, the base, which they name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bge_integrations.backend.checkpoint.json_files import OBJECT, MalformedJsonError, read_json
from bge_integrations.backend.checkpoint.weights import ADAPTER_CONFIG
from bge_integrations.errors import MissingExtraError, ModelLoadError, UnsafeWeightsError, UnsupportedModelError

# These kinds change only weights. Other kinds read prompts, tokenizers or further models that they name.
_KINDS = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT")


def base_of(folder: Path) -> tuple[str, str | None] | None:
    """Returns the name and the revision of an adapter's base; `None` for a folder with a whole model.

    Raises:
        ModelLoadError: The adapter's configuration can't be read, or names no base model.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    content = adapter_config(file)
    base, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(base, str) or not base.strip():
        raise ModelLoadError(
            f"{file} names no base model: base_model_name_or_path is {base!r}. Write there a hub id or the path of a "
            "folder."
        )
    return base, revision if isinstance(revision, str) else None


def require_runnable(name: str, folder: Path) -> None:
    """Refuses an adapter that can't be run here, or that would run code which it names.

    Raises:
        MissingExtraError: peft is not installed.
        UnsupportedModelError: The adapter changes more than weights.
        UnsafeWeightsError: The adapter names a module to import.
        ModelLoadError: The adapter's configuration can't be read.
    """
    content = adapter_config(folder / ADAPTER_CONFIG)
    kind, base, megatron = (content.get(key) for key in ("peft_type", "base_model_name_or_path", "megatron_config"))
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"{name} is an adapter of the kind {kind!r}, which can't be run; kinds that can are {', '.join(_KINDS)}. "
            f"Merge it into its base model, {base!r}, and give the folder of the whole model."
        )
    if megatron is not None:
        raise UnsafeWeightsError(
            f"{folder / ADAPTER_CONFIG} sets megatron_config, which makes peft import a module that the file names. "
            "Remove the entry; it only matters on several machines."
        )
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            f"{name} is an adapter ({kind}) of the base model {base!r}, and needs the package peft. Install it with: "
            f"pip install peft. Or merge the adapter into {base!r} once and give the folder of the whole model."
        )


def adapter_config(file: Path) -> dict[str, Any]:
    """Reads an adapter's configuration.

    Raises:
        ModelLoadError: It can't be read.
    """
    try:
        content: dict[str, Any] = read_json(file, OBJECT) or {}
    except MalformedJsonError as error:
        raise ModelLoadError(f"{error}; fetch it again.") from error
    return content
