"""The files in a folder on which a model's output can depend, and their state."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from pathlib import Path

from bge_integrations.backend.checkpoint.digests import file_identity
from bge_integrations.backend.checkpoint.weights import TRAINING_FILES

# Weights, configuration, tokenizers, chat templates, code, and the graph of a prepared model.
_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".gguf", ".json", ".py", ".jinja", ".xml"),
    *(".txt", ".model", ".spm", ".vocab", ".bpe", ".codes", ".tiktoken"),
)


def model_files(folder: Path, further: Iterable[Path] = ()) -> list[Path]:
    """Returns the files in a model's folder and in its modules' folders that can change its output, sorted.

    Symlinks are followed. Broken symlinks and a trainer's own files are left out.
    """
    folders = dict.fromkeys([folder, *further])
    return sorted(
        {
            path
            for place in folders
            for path in _entries(place)
            if path.suffix in _SUFFIXES and path.name not in TRAINING_FILES and os.path.isfile(path)
        },
        key=Path.as_posix,  # the order of paths differs on Windows
    )


def state_of(folder: Path) -> Hashable:
    """Returns a value that changes when a model's files in a folder change. It does not read them.

    It does not notice the changes that `file_identity` does not notice.
    """
    files = model_files(folder, _folders_of_modules(folder))
    return tuple((str(path.relative_to(folder)), _identity(path)) for path in files)


def _folders_of_modules(folder: Path) -> list[Path]:
    """Returns the folders below a folder, two levels deep, which is how deep sentence-transformers saves modules."""
    below = [path for path in _entries(folder) if os.path.isdir(path)]
    return [*below, *(path for place in below for path in _entries(place) if os.path.isdir(path))]


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        return file_identity(path)
    except OSError:
        return None  # the file was deleted after it was listed


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # the folder is missing, or this user can't open it
