"""bge-m3 with its two further heads, beside the dense vector. Imports torch."""

from __future__ import annotations

import pickle

import numpy as np
import torch

from bge_integrations.backend.engines import Engine, Rows
from bge_integrations.backend.heads import Heads
from bge_integrations.backend.sources.vectors import VectorSource
from bge_integrations.catalogue import M3_HEAD_FILES
from bge_integrations.errors import ModelLoadError, UnsafeWeightsError, UnsupportedModelError


class M3Source(VectorSource):
    """A SentenceTransformer, and the linear maps that lie beside it."""

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
                f"{self.request.model_name} makes its dense vector by more than a pooling, unlike bge-m3; load it with "
                "BgeEncoder."
            )
        width = self.facts.dimension
        self.heads = {
            **self._linear("sparse", 1, width),
            **self._linear("colbert", None, width),
        }

    def _linear(self, name: str, outputs: int | None, inputs: int) -> Heads:
        """Reads a linear map of `inputs` numbers to `outputs`, of any number if None. Runs no code of the file's."""
        file = self.checkpoint.folder / M3_HEAD_FILES[name]
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            weight, bias = (saved[kind].float().numpy() for kind in ("weight", "bias"))
        except pickle.UnpicklingError as error:
            raise UnsafeWeightsError(f"{file} holds more than weights, and would run code: {error}") from error
        except Exception as error:  # whatever a damaged file makes torch raise
            raise ModelLoadError(f"{file} can't be read ({error}); fetch the model again.") from error
        expected = (outputs or weight.shape[0], inputs)
        if weight.shape != expected or bias.shape != expected[:1]:
            raise ModelLoadError(
                f"{file} has a weight of shape {weight.shape} and a bias of shape {bias.shape}, which don't fit an "
                f"encoder of {inputs} dimensions; fetch the model again."
            )
        return {f"{name}.weight": np.ascontiguousarray(weight), f"{name}.bias": bias}
