"""The folder that the libraries load: a checkpoint's own, or a temporary folder with an adapter and its base."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.lora import adapter_config
from bge_integrations.backend.checkpoint.weights import ADAPTER_CONFIG, PICKLED_ADAPTER, SAFE_ADAPTER
from bge_integrations.errors import ModelLoadError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model", "*.spm")
_FURTHER_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "merges.txt", "bpe.codes")
_MODEL_FILES = ("*.safetensors", "*.index.json", "pytorch_model*.bin")
_BASE_FILES = ("config.json", *_MODEL_FILES, "*.py")


@contextmanager
def loadable_folder(checkpoint: Checkpoint) -> Iterator[str]:
    """Yields a folder that the libraries can load: the checkpoint's own, or one with an adapter and its base.

    The libraries would look for the base by the name that the adapter records, and with other settings. So they get
    both in one temporary folder, which is removed after loading.

    Raises:
        ModelLoadError: The temporary folder can't be made, or the adapter's weights can't be read.
    """
    if not (checkpoint.folder / ADAPTER_CONFIG).is_file():
        yield str(checkpoint.folder)
        return
    try:
        together = Path(tempfile.mkdtemp(prefix="bge-integrations-"))
    except OSError as error:
        raise ModelLoadError(f"{checkpoint.name} needs a temporary folder for adapter and base: {error}.") from error
    try:
        _put_together(together, checkpoint)
        yield str(together)
    finally:
        shutil.rmtree(together, ignore_errors=True)


def _put_together(together: Path, adapter: Checkpoint) -> None:
    # Model files beside the adapter would be read instead of the base's files, which were checked.
    left_out = set(_matching(adapter.folder, _MODEL_FILES)) if adapter.base else set()
    for entry in adapter.folder.iterdir():
        if entry not in left_out or entry.name.startswith("adapter_model."):
            _link(entry, together / entry.name)
    if adapter.base is not None:
        patterns = [*_BASE_FILES]
        if not any(_matching(together, _TOKENIZER_FILES)):
            patterns += [*_TOKENIZER_FILES, *_FURTHER_TOKENIZER_FILES]
        for entry in _matching(adapter.base.folder, patterns):
            if not os.path.lexists(together / entry.name):
                _link(entry, together / entry.name)
    if not (together / SAFE_ADAPTER).is_file():
        _convert(together / PICKLED_ADAPTER, together / SAFE_ADAPTER)
    content = adapter_config(together / ADAPTER_CONFIG)
    (together / ADAPTER_CONFIG).unlink()
    changed = {**content, "base_model_name_or_path": str(together), "revision": None}
    (together / ADAPTER_CONFIG).write_text(json.dumps(changed), encoding="utf-8")


def _convert(pickled: Path, safe: Path) -> None:
    """Writes pickled weights as safetensors, the only format that transformers reads for an adapter in a folder."""
    import torch
    from safetensors.torch import save_file

    try:
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, safe)
    except Exception as error:  # torch raises many classes of errors for a damaged file
        raise ModelLoadError(f"{pickled} can't be read: {error}. Fetch or copy the adapter again.") from error


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from folder.glob(pattern)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # on Windows, most users may not make symlinks
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.is_file():
            shutil.copyfile(source, target)
