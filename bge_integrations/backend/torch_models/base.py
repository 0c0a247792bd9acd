"""The base class of all sources: a model as a library loads it, with the model's facts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from bge_integrations.backend.checkpoint.facts import Lookups
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.checkpoint.weights import PICKLED_ADAPTER, SAFE_ADAPTER, WeightRules
from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.backend.engines.interface import Engine, Rows
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.backend.torch_models.faults import at_fault
from bge_integrations.backend.torch_models.loadable import loadable_folder
from bge_integrations.backend.torch_models.missing_weights import require_all_weights
from bge_integrations.backend.torch_models.tables import position_capacity, type_rows, word_rows
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import BgeError, ModelLoadError


class Source(ABC):
    """A checkpoint that sentence-transformers or transformers loaded.

    Attributes:
        request: The load request.
        checkpoint: The model's files.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        folder: Folder that the libraries load. For an adapter and its base it is temporary.
        original: The library's own object.
        tokenizer: Private copy of the model's tokenizer.
        facts: Facts of the model.
        heads: Weights on top of the encoder that the fast engines need; empty if there are none.
    """

    folder: str
    original: Any
    tokenizer: TextTokenizer
    facts: ModelFacts
    heads: Heads
    runnable: ClassVar[str]
    """Description of the models of this class that the fast engines can run, for errors."""

    def __init__(self, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None, precision: str) -> None:
        """Loads the model; see `load_source` for the arguments and errors."""
        self.request = request
        self.checkpoint = checkpoint
        self.spec = spec
        self.heads = {}
        try:
            with loadable_folder(checkpoint) as self.folder, quiet_transformers():
                self._load(precision)
        except BgeError:
            raise
        except Exception as error:  # a wrong value in the files may only fail when a library uses it
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ModelLoadError:
        """Returns the error for a checkpoint that a library can't load, with the faulty file if it can be found."""
        said = str(error).encode("utf-8", "backslashreplace").decode()  # lone surrogates can't be printed
        return ModelLoadError(
            f"{self.request.model_name} can't be loaded: {type(error).__name__}: {said.rstrip('.')}. "
            f"{at_fault(self.checkpoint, self.request)}"
        )

    @abstractmethod
    def _load(self, precision: str) -> None:
        """Sets `original`, `tokenizer`, `facts` and `heads`."""

    def _lookups(self) -> Lookups:
        return Lookups.of(
            self.tokenizer,
            positions=position_capacity(self.transformer),
            word_rows=word_rows(self.transformer),
            type_rows=type_rows(self.transformer),
        )

    def description(self) -> Description | None:
        """Returns the model as the fast engines need it; `None` if they can't run it. It must be float32 on the CPU."""
        if not self.has_known_encoder or self.facts.encoder is None:
            return None
        return Description(
            facts=self.facts,
            shape=self.facts.encoder,
            tokenizer=self.tokenizer,
            rows=self.rows,
            heads=self.heads,
            weights={name: tensor.numpy() for name, tensor in self.transformer.state_dict().items()},
        )

    @property
    @abstractmethod
    def transformer(self) -> torch.nn.Module:
        """The bare transformers model inside."""

    @property
    @abstractmethod
    def has_known_encoder(self) -> bool:
        """Whether the fast engines can run it: they know its encoder and all modules after it."""

    @property
    @abstractmethod
    def rows(self) -> Rows:
        """The kind of rows that a fast engine must compute."""

    def _require_all_weights(self, model: Any, *, needs_pooler: bool = False) -> None:  # noqa: ANN401
        """Refuses a transformers model with missing weights; see `require_all_weights`."""
        kwargs = from_pretrained_kwargs(self.request, str(model.dtype).removeprefix("torch."))
        for_model = kwargs.pop("model_kwargs")
        for name in ("processor_kwargs", "config_kwargs"):
            del kwargs[name]
        whole = self.checkpoint.base or self.checkpoint
        adapters = (self.checkpoint.folder / name for name in (SAFE_ADAPTER, PICKLED_ADAPTER))
        require_all_weights(
            model,
            self.request.model_name,
            whole.transformer_folder,
            whole.transformer_weights(WeightRules.of(self.request)),
            next((file for file in adapters if file.is_file()), None),
            {**kwargs, **for_model},
            needs_pooler=needs_pooler,
        )

    @abstractmethod
    def own_engine(self) -> Engine:
        """Returns an engine that calls the checkpoint's own modules."""


def from_pretrained_kwargs(request: LoadRequest, precision: str) -> dict[str, Any]:
    """Returns the keywords for the libraries to load a folder."""
    kwargs = request.transformers_kwargs.as_dicts()
    kwargs["model_kwargs"]["dtype"] = getattr(torch, precision)
    if not request.allow_pickle_weights:
        kwargs["model_kwargs"]["use_safetensors"] = True
    # Custom code may be in another repository than the weights, so files may be fetched only if the code is trusted.
    return {
        "trust_remote_code": request.trust_remote_code,
        "local_files_only": request.local_files_only or not request.trust_remote_code,
        "token": request.token,
        **kwargs,
    }
