"""Trains a small change of a model instead of all its weights: low-rank adapters, https://arxiv.org/abs/2106.09685.

Each adapted linear layer W gets two small matrices A and B, and computes W x + (alpha / rank) B A x. Only A and B are
trained. B begins as 0, so the model begins as it is. Imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from bge_integrations._optional import require
from bge_integrations.backend.checkpoint.weights import SAFE_ADAPTER
from bge_integrations.errors import SettingsError
from bge_integrations.training.settings import Lora
from bge_integrations.training.trainer.starting import Start
from bge_integrations.training.trainer.trainer import Subject

__all__ = ["adapted_subject", "add_adapter"]

_NAME = "default"


def add_adapter(start: Start, lora: Lora, seed: int) -> None:
    """Adds an adapter to a model, and freezes everything else.

    Raises:
        MissingExtraError: peft is not installed.
        SettingsError: The model has an adapter already, or there are no such layers.
    """
    require("peft", extra="lora")
    from peft import LoraConfig

    model, transformer = start.model, start.model[0].auto_model
    if getattr(transformer, "peft_config", None):
        raise SettingsError(
            f"{start.source[0]} is an adapter with its base already. Merge it first (peft's merge_and_unload), and "
            "give the folder of the whole model."
        )
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(transformer, lora.targets),
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    # The folder that it was loaded from may be a temporary one, or a cache.
    saved = transformer.peft_config[_NAME]
    saved.base_model_name_or_path, saved.revision = start.source


def adapted_subject(subject: Subject, start: Start, lora: Lora) -> Subject:
    """Returns what is trained of a model with an adapter. Checkpoints have the adapter alone."""

    def finish(folder: Path) -> None:
        if lora.merge:
            _merge(start.model[0].auto_model)
        subject.write(folder)

    return dataclasses.replace(
        subject, restore=lambda folder: _restore(start.model[0].auto_model, folder), finish=finish
    )


def _targets(transformer: nn.Module, given: Sequence[str] | None) -> list[str]:
    """Returns names of the layers to adapt: the given ones, or all linear ones that act on vectors.

    Raises:
        SettingsError: A name is that of no layer.
    """
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    for target in given or ():
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise SettingsError(f"The LoRA target {target!r} is no linear layer of the model, which has {kinds}.")
    if given:
        return list(given)
    # Nothing reads the pooler of BERT and XLM-RoBERTa here.
    used = [name for name in linear if "pooler" not in name.split(".")]
    return kinds if len(used) == len(linear) else used


def _restore(transformer: Any, folder: Path) -> None:  # noqa: ANN401 - a transformers model
    from peft.utils import set_peft_model_state_dict

    prefix = "base_model.model."
    saved = {name.removeprefix(prefix): value for name, value in load_file(folder / SAFE_ADAPTER).items()}
    set_peft_model_state_dict(transformer, saved, adapter_name=_NAME)


def _merge(transformer: Any) -> None:  # noqa: ANN401 - a transformers model
    """Adds an adapter to the weights of its layers, and takes it out of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, last = name.rpartition(".")
        setattr(transformer.get_submodule(parent), last, module.get_base_layer())
    transformer.delete_adapter(_NAME)
