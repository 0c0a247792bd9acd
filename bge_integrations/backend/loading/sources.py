"""The source of a model's weights: its files alone if they say everything, otherwise a library that loads it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from bge_integrations.backend.checkpoint.describe import describe
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.plainness import NotPlainError
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.display.steps import say_step
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.torch_models import load_source
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import MissingExtraError

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source

logger = get_logger(__name__)


class Sources:
    """A model's weights, loaded when they are first needed.

    Attributes:
        request: The load request.
        checkpoint: The model's files, already checked by `vet`.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        runnable: Description of the models that the fast engines can run, for errors.
    """

    def __init__(self, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.spec = spec
        self.runnable = "encoder that it knows"
        self._loaded: tuple[str, Source] | None = None

    def description(self) -> Description | None:
        """Returns the model in float32 as the fast engines need it; `None` if they can't run it.

        Raises:
            MissingExtraError: Only a library that is not installed can load it.
            ModelLoadError: The files can't be read.
            UnsupportedModelError: The model is of another kind.
        """
        try:
            return describe(self.request, self.checkpoint, self.spec)
        except NotPlainError as reason:
            logger.info("%s: loaded by sentence-transformers, since %s", self.request.model_name, reason)
            try:
                return self.load("float32").description()
            except MissingExtraError as error:
                needs = f"{self.request.model_name} needs more than OpenVINO, since {reason}"
                raise MissingExtraError(f"{needs}: {error}") from None

    def load(self, precision: str) -> Source:
        """Returns the model as a library loads it, with its weights in a precision."""
        if self._loaded is None or self._loaded[0] != precision:
            self._loaded = None  # never two models in memory
            say_step("reading the weights with torch")
            source = load_source(self.request, self.checkpoint, self.spec, precision)
            self.runnable = source.runnable
            self._loaded = precision, source
        return self._loaded[1]

    def release(self) -> None:
        """Frees the weights at once. The libraries' models are reference cycles."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()
