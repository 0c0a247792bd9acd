"""Refuses a checkpoint with missing weights: transformers fills them with random numbers and only logs it.

The names in the files are compared with the model's names, which reads no weights. Names may also differ for good
reasons, such as tied weights, former names or merged matrices. So if a name differs, transformers loads the model once
more and reports the missing weights. For an adapter, the base is compared with its own files, and the adapter's
matrices with the adapter's file. Imports torch.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import ModelLoadError

logger = get_logger(__name__)

# transformers renames these itself while it loads (checkpoints converted from TensorFlow, and weight normalisation).
_FORMER_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
_POOLER = re.compile(r"(^|\.)pooler\.")
# Parts of the names that peft gives an adapter's weights, in the model and in the adapter's file.
_OF_ADAPTER = re.compile(r"(\.modules_to_save)?\.default(?=\.|$)")
_ADAPTER_PREFIX, _ADAPTED = "base_model.model.", ".base_layer."
_UNSAVED = ".ranknum"  # of AdaLoRA, which takes it from its configuration


def require_all_weights(
    model: Any,  # noqa: ANN401 - transformers' classes share no public base for this
    name: str,
    folder: Path,
    files: Sequence[Path],
    adapter: Path | None,
    kwargs: Mapping[str, Any],
    *,
    needs_pooler: bool = False,
) -> None:
    """Compares a model with the files that it was loaded from.

    Args:
        model: A transformers model.
        name: The model's name as the user wrote it.
        folder: Folder of the model; for an adapter, folder of its base.
        files: Weight files that were read; for an adapter, the files of its base.
        adapter: File with an adapter's weights; `None` for a model without an adapter.
        kwargs: Keywords for `from_pretrained`, if the model must be loaded again.
        needs_pooler: Whether the output depends on BERT's pooler, which vectors don't need.

    Raises:
        ModelLoadError: Weights are missing. The message names the first of them.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}

    def is_needed(weight: str) -> bool:
        return weight not in tied and (needs_pooler or not _POOLER.search(weight))

    own = [weight for weight in model.state_dict() if _OF_ADAPTER.search(weight)]
    if adapter is not None:
        _require_adapter(own, name, adapter)
    wanted = [weight.replace(_ADAPTED, ".") for weight in model.state_dict() if weight not in own and is_needed(weight)]
    known = _known_names(model, files)
    if all(weight in known for weight in wanted):
        return
    logger.info("%s: names of weights differ from the files; transformers loads it again to find missing ones", name)
    _, report = type(model).from_pretrained(str(folder), config=model.config, output_loading_info=True, **kwargs)
    missing = [weight for weight in wanted if weight in report["missing_keys"]]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ModelLoadError(
            f"{name} can't be used: the weight files in {folder} have no {missing[0]}{others}, so random numbers would "
            f"be used. The files were saved from another kind of model, or are incomplete; save or fetch the whole "
            f"{type(model).__name__} again."
        )


def _require_adapter(weights: Sequence[str], name: str, file: Path) -> None:
    saved = {weight.removeprefix(_ADAPTER_PREFIX) for weight in _names(file)}
    for weight in weights:
        expected = _OF_ADAPTER.sub("", weight)
        if expected not in saved and not expected.endswith(_UNSAVED):
            raise ModelLoadError(
                f"{name} can't be used: {file} has no {_ADAPTER_PREFIX}{expected}, the name that transformers reads, "
                "so other numbers would be used. Save or fetch the adapter again; or merge it into its base model "
                "(peft's merge_and_unload), and give the folder of the whole model."
            )


def _known_names(model: Any, files: Iterable[Path]) -> set[str]:  # noqa: ANN401 - as above
    """Returns the names in the files by which the model may call them, with and without its base model's prefix."""
    prefix = f"{model.base_model_prefix}." if getattr(model, "base_model_prefix", "") else ""
    known = set()
    for file in files:
        for saved in _names(file):
            ending = next((old for old in _FORMER_ENDINGS if saved.endswith(old)), None)
            now = saved.removesuffix(ending) + _FORMER_ENDINGS[ending] if ending else saved
            known |= {now, now.removeprefix(prefix), prefix + now}
    return known


def _names(file: Path) -> list[str]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    # Files of torch before version 1.6 can't be memory-mapped.
    saved = torch.load(file, map_location="meta", mmap=zipfile.is_zipfile(file), weights_only=True)
    return list(saved)
