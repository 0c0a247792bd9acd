"""bge-m3 with its two heads for lexical weights and token vectors. Imports torch."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bge_integrations.backend.checkpoint.genuine import require_genuine
from bge_integrations.backend.engines.interface import Engine, Rows
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Floats, Heads
from bge_integrations.backend.torch_models.embedder import VectorSource
from bge_integrations.backend.torch_models.tokenizer_check import CallSettings
from bge_integrations.catalogue import M3_HEAD_FILES
from bge_integrations.errors import ModelLoadError, UnsafeWeightsError, UnsupportedModelError

# Prefixes that DistributedDataParallel and torch.compile add to the names of weights.
_WRAPPERS = ("module.", "_orig_mod.")
# torch.save writes a zip file; before torch 1.6 it wrote a pickle.
_BEGINNINGS = (b"PK", b"\x80")


class M3Source(VectorSource):
    """A SentenceTransformer with the linear maps beside it."""

    @property
    def rows(self) -> Rows:
        """See `Source.rows`."""
        return "tokens"

    def own_engine(self) -> Engine:
        """See `Source.own_engine`."""
        return self._engine_of([self.original[0]], rows="tokens")

    def _load(self, precision: str) -> None:
        super()._load(precision)
        if self.facts.pooling is None:
            raise UnsupportedModelError(
                f"{self.request.model_name} computes its dense vector by more than a pooling, unlike bge-m3; load it "
                "with BgeEncoder."
            )
        width = self.facts.dimension
        self.heads = {
            **self._linear("sparse", 1, width),
            **self._linear("colbert", None, width),
        }

    def _facts(self, settings: CallSettings) -> ModelFacts:
        return dataclasses.replace(super()._facts(settings), unweighted_ids=unweighted_ids(self.original.tokenizer))

    def _linear(self, name: str, outputs: int | None, inputs: int) -> Heads:
        """Reads a linear map from `inputs` to `outputs` numbers (`None`: any). It runs no code from the file."""
        file = self.checkpoint.folder / M3_HEAD_FILES[name]
        require_genuine(file)
        weight, bias = _weight_and_bias(file, _read(file))
        expected = (outputs or len(bias), inputs)
        if weight.shape != expected or bias.shape != expected[:1]:
            raise ModelLoadError(
                f"{file} has a weight of shape {weight.shape} and a bias of shape {bias.shape}, which don't fit an "
                f"encoder of {inputs} dimensions; fetch the model again."
            )
        return {f"{name}.weight": np.ascontiguousarray(weight), f"{name}.bias": bias}


def unweighted_ids(tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401 - transformers' tokenizers share no public base
    """Returns the ids of the begin, end, padding and unknown tokens, and of no other special tokens.

    FlagEmbedding's `M3Embedder` leaves out the same tokens (`_process_token_weights`). A tokenizer without an end
    token, such as BERT's, ends a text with the separator.
    """
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    found = (tokenizer.cls_token_id, end, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return tuple(sorted({int(id_) for id_ in found if id_ is not None}))


def _read(file: Path) -> Any:  # noqa: ANN401 - what a pickle of plain data may hold
    """Reads a file of torch that contains only plain data."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickle(file):
            raise ModelLoadError(f"{file} was not saved by torch ({error}); fetch the model again.") from error
        named = ", ".join(re.findall(r"GLOBAL (\S+)", str(error))) or "Python objects"
        raise UnsafeWeightsError(
            f"{file} contains more than weights ({named}), and would run code. Its author can save the weights alone: "
            "torch.save(linear.state_dict(), …) instead of torch.save(linear, …)."
        ) from error
    except Exception as error:  # torch raises many classes of errors for a damaged file
        raise ModelLoadError(f"{file} can't be read ({error}); fetch the model again.") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2).startswith(_BEGINNINGS)


def _weight_and_bias(file: Path, saved: Any) -> tuple[Floats, Floats]:  # noqa: ANN401 - as above
    """Returns the weight and the bias in a state dictionary.

    Raises:
        ModelLoadError: The file contains something else.
    """
    remedy = "Save it by torch.save(linear.state_dict(), …), where linear is the torch.nn.Linear."
    if not isinstance(saved, Mapping):
        raise ModelLoadError(f"{file} contains a {type(saved).__name__}, not a dictionary of weights. {remedy}")
    named = {_without_wrappers(str(name)): value for name, value in saved.items()}
    if set(named) != {"weight", "bias"} or len(named) != len(saved):
        raise ModelLoadError(
            f"{file} contains {', '.join(map(repr, saved)) or 'nothing'}, instead of 'weight' and 'bias'. {remedy}"
        )
    for name, value in named.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ModelLoadError(f"{name!r} in {file} is not a tensor of floating-point numbers. {remedy}")
    weight, bias = (named[name].detach().float().numpy() for name in ("weight", "bias"))
    if weight.ndim != 2 or bias.ndim != 1:
        raise ModelLoadError(
            f"{file} has a weight of shape {weight.shape} and a bias of shape {bias.shape}, which don't belong to a "
            f"linear map. {remedy}"
        )
    return weight, bias


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name
