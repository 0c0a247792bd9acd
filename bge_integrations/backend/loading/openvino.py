"""Starts OpenVINO with a graph from the cache, from a prepared folder, or built from a model's weights."""

from __future__ import annotations

import dataclasses
from functools import partial

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.display.steps import say_step
from bge_integrations.backend.engines.choice import require_usable
from bge_integrations.backend.guarantees.forks import LONGEST_START_S, watched
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.loading.sources import Sources
from bge_integrations.backend.loading.started import Started
from bge_integrations.backend.machine.cpu import share_threads
from bge_integrations.backend.model.pooling import NAMES_OF_SETTING
from bge_integrations.backend.prepared.cache import cached_model
from bge_integrations.backend.prepared.folder import PreparedFolder, PreparedModel
from bge_integrations.backend.scheduler import EngineSlot
from bge_integrations.errors import (
    EngineNotAvailableError,
    PreparedModelError,
    SettingsError,
    UnsupportedModelError,
)

logger = get_logger(__name__)


def start_openvino(sources: Sources) -> Started | None:
    """Starts OpenVINO; returns `None` for an encoder that it can't run."""
    from bge_integrations.backend.engines.openvino.library import ov

    key = _cache_key(sources, ov.__version__)
    prepared = cached_model(key, partial(_prepare_graph, sources, key))
    return _run(prepared, sources.request) if prepared else None


def _prepare_graph(sources: Sources, key: str) -> PreparedModel | None:
    """Builds the graph of a model; returns `None` for an encoder that OpenVINO can't run."""
    from bge_integrations.backend.prepared.build import prepared_from

    request, precision = sources.request, _graph_precision(sources.request)
    model = sources.description()
    if model is None:
        return None
    if not model.tokenizer.has_rust_form:
        raise EngineNotAvailableError(
            f"{request.model_name} has a tokenizer that exists in Python only, but engine='openvino' (and with it "
            "precision='int8') saves a model's tokenizer as tokenizer.json; leave engine and precision at 'auto'."
        )
    say_step("building a graph, which later loads find in the cache")
    logger.info("%s: preparing a graph in %s; later loads find it in the cache", request.model_name, precision)
    return prepared_from(model, request, sources.checkpoint, sources.spec, precision=precision, cache_key=key)


def _graph_precision(request: LoadRequest) -> str:
    return "int8" if request.precision == "int8" else "float32"


def _cache_key(sources: Sources, openvino_version: str) -> str:
    """Returns the key of everything that a graph depends on, without its format, which the cache adds."""
    request, recognition = sources.request, sources.checkpoint.recognition
    return key_of(
        {
            "content": sources.checkpoint.fingerprint,
            "recognized": dataclasses.asdict(recognition) if recognition else None,
            "pooling": request.pooling,
            "purpose": request.purpose,
            "transformers_kwargs": request.transformers_kwargs.as_dicts(),
            "trust_remote_code": request.trust_remote_code,
            "precision": _graph_precision(request),
            "openvino": openvino_version,  # an older version may be unable to read a newer version's graph
        }
    )


def _run(prepared: PreparedModel, request: LoadRequest) -> Started:
    from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, threads_of_helpers

    manifest = prepared.manifest
    shape = manifest.facts.encoder
    if shape is None:
        raise PreparedModelError(
            f"The graph in {prepared.place} is damaged: it describes no encoder. Prepare it again."
        )

    def compile_for(threads: int) -> OpenVinoEngine:
        try:
            return OpenVinoEngine(
                prepared.graph, shape, rows=manifest.rows, precision=request.precision, threads=threads
            )
        except RuntimeError as error:
            raise PreparedModelError(
                f"OpenVINO can't compile the graph in {prepared.place}: {error}. Prepare it again."
            ) from error

    def say_late() -> None:
        logger.warning(
            "%s: OpenVINO has been compiling the model for more than %g s. If this process was forked while its parent "
            "computed, it may never end: start processes by 'spawn' or 'forkserver', or fork before a model computes",
            request.model_name,
            LONGEST_START_S,
        )

    def first_for(threads: int) -> OpenVinoEngine:
        say_step("compiling the graph")
        with watched(say_late):
            return compile_for(threads)

    helpers = threads_of_helpers(shape, request.precision, request.threads) if request.copies == 1 else []
    slots = (
        *(
            EngineSlot(partial(compile_for, own), first_for(own))
            for own in share_threads(request.threads, request.copies)
        ),
        *(EngineSlot(partial(compile_for, own), is_helper=True) for own in helpers),
    )
    return Started(slots, manifest.facts, prepared.tokenizer, prepared.heads)


def start_prepared(prepared: PreparedFolder, request: LoadRequest) -> Started:
    """Starts a prepared model.

    Raises:
        EngineNotAvailableError: The request names another engine or device.
        MissingExtraError: OpenVINO is not installed.
        PreparedModelError: OpenVINO can't compile the graph.
        SettingsError: The request has another precision or pooling than the model was prepared with.
        UnsupportedModelError: The model was prepared for another purpose.
    """
    made_for = prepared.manifest.precision
    if request.engine not in ("auto", "openvino"):
        raise EngineNotAvailableError(
            f"engine={request.engine!r} can't run {request.model_name}: prepared models are for openvino."
        )
    if request.purpose != prepared.manifest.purpose and (request.purpose, prepared.manifest.purpose) != (
        "vectors",
        "m3",
    ):
        raise UnsupportedModelError(
            f"{request.model_name} was prepared for {prepared.manifest.purpose}, not for {request.purpose}; prepare "
            f"another folder with `bge prepare … --purpose {request.purpose}`."
        )
    if request.precision != made_for and "int8" in (request.precision, made_for):
        raise SettingsError(
            f"precision={request.precision!r} does not fit {request.model_name}, which was prepared in {made_for}; "
            "leave precision='auto', or prepare another folder."
        )
    pooling = NAMES_OF_SETTING.get(request.pooling or "")
    if pooling and pooling != prepared.manifest.facts.pooling:
        raise SettingsError(
            f"pooling={request.pooling!r} does not fit {request.model_name}, which was prepared with "
            f"{prepared.manifest.facts.pooling} pooling; leave pooling=None, or prepare another folder."
        )
    require_usable("openvino", request.device, request.precision)
    return _run(prepared, request)
