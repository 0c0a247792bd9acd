"""The head of masked language modelling: from hidden states to words. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from bge_integrations.training.retromae.vocabulary_loss import vocabulary_loss

__all__ = ["NAMES", "MlmHead", "stored_head"]


@dataclass(frozen=True)
class HeadNames:
    """Names of a head's weights in transformers' model."""

    model_class: str
    dense: str = "lm_head.dense"
    norm: str = "lm_head.layer_norm"
    bias: str = "lm_head.bias"

    def stored(self, name: str) -> str:
        """Returns transformers' name of a weight of `MlmHead`."""
        part, dot, kind = name.partition(".")
        stored: str = getattr(self, part)
        return f"{stored}{dot}{kind}"


NAMES: Mapping[str, HeadNames] = {
    "bert": HeadNames(
        "BertForMaskedLM",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ),
    "roberta": HeadNames("RobertaForMaskedLM"),
    "xlm-roberta": HeadNames("XLMRobertaForMaskedLM"),
    "camembert": HeadNames("CamembertForMaskedLM"),
}
"""By the `model_type` of config.json."""

_FORMER = {".gamma": ".weight", ".beta": ".bias"}
"""Endings in checkpoints that were converted from TensorFlow."""


class MlmHead(nn.Module):
    """A linear map, GELU, a layer normalisation, and the table of word embeddings, which is the encoder's own."""

    def __init__(self, *, width: int, words: int, norm_eps: float, spread: float) -> None:
        """Makes a head with new weights.

        Args:
            width: Of the hidden states.
            words: Rows of the table of words.
            norm_eps: Number added to the variance in the normalisation.
            spread: Standard deviation of new weights.
        """
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.dense.weight, std=spread)
        nn.init.zeros_(self.dense.bias)

    def loss(self, rows: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
        """Returns the sum of the cross entropies of hidden states, shape [rows, width].

        Args:
            rows: The hidden states.
            table: The encoder's word embeddings.
            wanted: The right token id of each.
        """
        return vocabulary_loss(self.norm(functional.gelu(self.dense(rows))), table, self.bias, wanted)


def stored_head(files: Iterable[Path], names: HeadNames) -> dict[str, Tensor]:
    """Returns the weights of a head that a model's files have, by their names in `MlmHead`."""
    wanted = {names.stored(name): name for name in ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias")}
    found = {}
    for file in files:
        stored = _Stored(file)
        for name in stored.names:
            ending = next((former for former in _FORMER if name.endswith(former)), None)
            now = name if ending is None else name.removesuffix(ending) + _FORMER[ending]
            if now in wanted:
                found[wanted[now]] = stored.read(name).float()
    return found


class _Stored:
    """The tensors of a file, of which only those that are asked for are read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._content: Mapping[str, Tensor] | None = None
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                self.names = list(opened.keys())
        else:
            # These files are here only if the user has allowed them, and the encoder was read from them.
            self._content = torch.load(file, map_location="cpu", weights_only=True)
            self.names = list(self._content)

    def read(self, name: str) -> Tensor:
        if self._content is not None:
            return self._content[name]
        with safe_open(self._file, framework="pt") as opened:
            found: Any = opened.get_tensor(name)
        tensor: Tensor = found
        return tensor
