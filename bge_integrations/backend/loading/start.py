"""Starts the engine that runs a model, and loads only what that engine needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.architecture import ARCHITECTURES
from bge_integrations.backend.engines.choice import candidates
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.loading.openvino import start_openvino
from bge_integrations.backend.loading.sources import Sources
from bge_integrations.backend.loading.started import Started
from bge_integrations.backend.loading.torch_engines import start_sentence_transformers, start_torch
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import EngineNotAvailableError

logger = get_logger(__name__)

STARTERS: Mapping[str, Callable[[Sources], Started | None]] = {
    "openvino": start_openvino,
    "torch": start_torch,
    "sentence-transformers": start_sentence_transformers,
}
"""Functions that start the engines in `engines.choice.ENGINE_KINDS`; `None` for an encoder that one can't run."""


def start(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> Started:
    """Starts the requested engine, or the fastest that can run the model.

    Raises:
        EngineNotAvailableError: The requested engine, or every engine, can't run the model with these settings.
        MissingExtraError: A package that is needed is not installed.
        ModelLoadError: The files can't be read.
    """
    sources = Sources(request, checkpoint, spec)
    known = checkpoint.config.get("model_type") in ARCHITECTURES
    refused: EngineNotAvailableError | None = None
    for kind in candidates(request.engine, request.device, request.precision, known_architecture=known):
        try:
            started = STARTERS[kind.name](sources)
        except EngineNotAvailableError as error:
            if request.engine != "auto":
                raise
            logger.warning("%s: continuing without %s: %s", request.model_name, kind.name, error)
            refused = error
            continue
        if started is not None:
            why = "the fastest that can run it here" if request.engine == "auto" else "as requested"
            logger.info("%s: engine %s, %s", request.model_name, kind.name, why)
            if started.source is None:
                sources.release()
            return _with_replicas(started, request, checkpoint, spec)
        logger.info("%s: not engine %s, which can't run this kind of encoder", request.model_name, kind.name)
    if refused is not None:
        raise refused
    raise EngineNotAvailableError(
        f"engine={request.engine!r} with precision={request.precision!r} can't run {request.model_name}: it is not a "
        f"{sources.runnable}. Leave both at 'auto'."
    )


def _with_replicas(started: Started, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> Started:
    """Adds an engine on each further device. Engines on one CPU share its weights, and are already started."""
    slots = list(started.slots)
    for device in request.devices[1:] if request.device != "cpu" else ():
        alone = dataclasses.replace(request, devices=(device,), engine=started.engine.name)
        slots += start(alone, checkpoint, spec).slots
    return dataclasses.replace(started, slots=tuple(slots))
