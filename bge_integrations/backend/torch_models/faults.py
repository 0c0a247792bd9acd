"""Finds the file that made loading fail, by reading each file of a checkpoint alone after the failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import import_module_class
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoProcessor, GenerationConfig

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.request import LoadRequest

# transformers' classes have no type annotations.
_any_model: Any = AutoModel
_any_processor: Any = AutoProcessor

_OF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def at_fault(checkpoint: Checkpoint, request: LoadRequest) -> str:
    """Returns a sentence for errors that names the file that can't be read alone, or says that each file can."""
    for files, read in _readers(checkpoint, request):
        if any(file.is_file() for file in files) and _fails(read):
            names = " or ".join(str(file) for file in files if file.is_file())
            return f"The fault is in {names}; fetch the model again, or correct the file."
    return (
        f"Each JSON file in {checkpoint.folder} can be read alone, so config.json may not fit the weights or the "
        "tokenizer; fetch the whole model again."
    )


def _readers(checkpoint: Checkpoint, request: LoadRequest) -> Iterator[tuple[list[Path], Callable[[], object]]]:
    folder, trusted = checkpoint.transformer_folder, request.trust_remote_code
    here: dict[str, Any] = {"local_files_only": not trusted, "trust_remote_code": trusted, "token": request.token}
    yield [folder / "config.json"], lambda: _empty_model(folder, here)
    yield [folder / "generation_config.json"], lambda: GenerationConfig.from_pretrained(folder, local_files_only=True)
    # Our own copy of a tokenizer is written and read again, which may fail even if the file can be read.
    rust = str(folder / "tokenizer.json")
    yield [folder / "tokenizer.json"], lambda: Tokenizer.from_str(Tokenizer.from_file(rust).to_str())
    yield [folder / name for name in _OF_TOKENIZER], lambda: _any_processor.from_pretrained(folder, **here)
    for module in (checkpoint.modules or ())[1:]:
        yield [checkpoint.folder / module["path"] / "config.json"], partial(_load_module, checkpoint, module, here)


def _empty_model(folder: Path, here: dict[str, Any]) -> object:
    """Makes a model without weights, which fails if the sizes in config.json don't fit each other."""
    config = AutoConfig.from_pretrained(folder, **here)
    with torch.device("meta"):
        model: object = _any_model.from_config(config, trust_remote_code=here["trust_remote_code"])
    return model


def _load_module(checkpoint: Checkpoint, module: dict[str, Any], here: dict[str, Any]) -> object:
    folder = str(checkpoint.folder)
    kind: Any = import_module_class(module["type"], folder, **here)
    return kind.load(folder, subfolder=module["path"], **here)


def _fails(read: Callable[[], object]) -> bool:
    try:
        read()
    except Exception:  # the original error already has the loader's message
        return True
    return False
