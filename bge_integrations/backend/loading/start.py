"""Starts the engine that runs a model, loading no more for it than it needs."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.architecture import ARCHITECTURES
from bge_integrations.backend.engines.choice import candidates, require_usable
from bge_integrations.backend.engines.interface import Engine, TokenBatch
from bge_integrations.backend.guarantees.forks import LONGEST_START_S, watched
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.machine.cpu import set_torch_threads, share_threads
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import Heads, one_score_a_pair
from bge_integrations.backend.model.lookups import texts_with_embeddings
from bge_integrations.backend.model.pooling import NAMES_OF_SETTING, cosines, one_row_a_text
from bge_integrations.backend.prepared.cache import cached_model
from bge_integrations.backend.prepared.folder import PreparedFolder, PreparedModel
from bge_integrations.backend.scheduler import EngineSlot
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.backend.torch_models import load_source
from bge_integrations.catalogue import ModelSpec
from bge_integrations.errors import (
    EngineNotAvailableError,
    PreparedModelError,
    SettingsError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source

logger = get_logger(__name__)

_LEAST_COSINE_OF_CHECK = 0.999
_TOLERANCE_OF_CHECK = 0.02, 0.02  # of scores: relative, absolute


@dataclass(frozen=True)
class Started:
    """A running engine.

    Attributes:
        slots: Places for the engines that run the model; the first is filled.
        facts: What is known of the model.
        tokenizer: Its tokenizer.
        heads: The weights on top of the encoder, where there are any.
        source: The model as a library loaded it, where the engine holds on to it.
        torch_threads: The number of torch's threads that was set for it, if one was.
    """

    slots: tuple[EngineSlot, ...]
    facts: ModelFacts
    tokenizer: TextTokenizer
    heads: Heads
    source: Source | None = None
    torch_threads: int | None = None

    @property
    def engine(self) -> Engine:
        """The first engine."""
        engine = self.slots[0].engine
        if engine is None:
            raise AssertionError("the first slot is filled when a model is started")
        return engine


def start(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> Started:
    """Starts the engine asked for, or the fastest that can run the model.

    Args:
        request: What was asked for.
        checkpoint: The model's files, already vetted.
        spec: The catalogue's row, or None for a model that is no BGE.

    Raises:
        EngineNotAvailableError: The engine named, or every engine, can't run it so.
        MissingExtraError: Something that must be installed for it is not.
        ModelLoadError: The files can't be read.
    """
    starters: Mapping[str, Callable[[_Sources], Started | None]] = {
        "openvino": _start_openvino,
        "torch": _start_torch,
        "sentence-transformers": _start_sentence_transformers,
    }
    sources = _Sources(request, checkpoint, spec)
    known = checkpoint.config.get("model_type") in ARCHITECTURES
    refused: EngineNotAvailableError | None = None
    for kind in candidates(request.engine, request.device, request.precision, known_architecture=known):
        try:
            started = starters[kind.name](sources)
        except EngineNotAvailableError as error:
            if request.engine != "auto":
                raise
            logger.warning("%s: going on without %s: %s", request.model_name, kind.name, error)
            refused = error
            continue
        if started is not None:
            why = "the fastest that can run it here" if request.engine == "auto" else "as asked"
            logger.info("%s: engine %s, %s", request.model_name, kind.name, why)
            if started.source is None:
                sources.release()
            return _with_replicas(started, request, checkpoint, spec)
        logger.info("%s: not %s, which does not know this kind of encoder", request.model_name, kind.name)
    if refused is not None:
        raise refused
    raise EngineNotAvailableError(
        f"engine={request.engine!r} with precision={request.precision!r} can't run {request.model_name}: it is no "
        f"{sources.runnable}. Leave both at 'auto'."
    )


def _with_replicas(started: Started, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> Started:
    """Adds an engine on each further device; those on one processor share its weights and are there already."""
    slots = list(started.slots)
    for device in request.devices[1:] if request.device != "cpu" else ():
        alone = dataclasses.replace(request, devices=(device,), engine=started.engine.name)
        slots += start(alone, checkpoint, spec).slots
    return dataclasses.replace(started, slots=tuple(slots))


def start_prepared(prepared: PreparedFolder, request: LoadRequest) -> Started:
    """Starts a prepared model.

    Raises:
        EngineNotAvailableError: Another engine or device is asked for.
        MissingExtraError: OpenVINO is not installed.
        PreparedModelError: OpenVINO can't read it.
        SettingsError: Another precision is asked for than it was prepared for.
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
            f"precision={request.precision!r} can't be had from {request.model_name}, which was prepared for "
            f"{made_for}; leave precision='auto', or prepare another folder."
        )
    pooling = NAMES_OF_SETTING.get(request.pooling or "")
    if pooling and pooling != prepared.manifest.facts.pooling:
        raise SettingsError(
            f"pooling={request.pooling!r} can't be had from {request.model_name}, which was prepared with "
            f"{prepared.manifest.facts.pooling} pooling; leave pooling=None, or prepare another folder."
        )
    require_usable("openvino", request.device, request.precision)
    return _run_openvino(prepared, request)


class _Sources:
    """Loads the model by its library when it is first needed, and not twice."""

    def __init__(self, request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.spec = spec
        self.runnable = "encoder that it knows"
        self._loaded: tuple[str, Source] | None = None

    def load(self, precision: str) -> Source:
        if self._loaded is None or self._loaded[0] != precision:
            self._loaded = None  # gone before the next one comes
            source = load_source(self.request, self.checkpoint, self.spec, precision)
            self.runnable = source.runnable
            self._loaded = precision, source
        return self._loaded[1]

    def release(self) -> None:
        """Gives the weights back at once: the libraries' models are reference cycles."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()


def _start_openvino(sources: _Sources) -> Started | None:
    from bge_integrations.backend.engines.openvino.library import ov

    key = _cache_key(sources, ov.__version__)
    prepared = cached_model(key, partial(_prepare_graph, sources, key))
    return _run_openvino(prepared, sources.request) if prepared else None


def _prepare_graph(sources: _Sources, key: str) -> PreparedModel | None:
    """Makes the graph of a model; None for an encoder that it can't be made of."""
    from bge_integrations.backend.engines.openvino.quantization import require_quantizer
    from bge_integrations.backend.prepared.build import prepared_from

    request, precision = sources.request, _graph_precision(sources.request)
    if precision == "int8":
        require_quantizer()
    source = sources.load("float32")
    if not source.has_known_encoder:
        return None
    if not source.tokenizer.has_rust_form:
        raise EngineNotAvailableError(
            f"{request.model_name} has a tokenizer that exists in Python only, and engine='openvino' (and with it "
            "precision='int8') keeps a model's tokenizer as tokenizer.json; leave engine and precision at 'auto'."
        )
    logger.info("%s: preparing a graph in %s, which is done once", request.model_name, precision)
    return prepared_from(source, precision=precision, cache_key=key)


def _graph_precision(request: LoadRequest) -> str:
    return "int8" if request.precision == "int8" else "float32"


def _cache_key(sources: _Sources, openvino_version: str) -> str:
    """Names all that a graph depends on, but for its format, which the cache adds."""
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
            "openvino": openvino_version,  # an older one need not read what a newer one wrote
        }
    )


def _run_openvino(prepared: PreparedModel, request: LoadRequest) -> Started:
    from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, threads_of_helpers

    manifest = prepared.manifest
    shape = manifest.facts.encoder
    if shape is None:
        raise PreparedModelError(
            f"The graph in {prepared.place} is damaged: no encoder is described. Prepare it again."
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
            "%s: OpenVINO has compiled the model for more than %g s. If this process was forked while its parent "
            "computed, that may never end: start processes by 'spawn' or 'forkserver', or fork before a model computes",
            request.model_name,
            LONGEST_START_S,
        )

    def first_for(threads: int) -> OpenVinoEngine:
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


def _start_torch(sources: _Sources) -> Started | None:
    from bge_integrations.backend.engines.torch.engine import TorchEngine

    request = sources.request
    source = sources.load(request.precision)
    shape = source.facts.encoder
    if not source.has_known_encoder or shape is None:
        return None
    threads = _limit_torch_threads(request)
    engine = TorchEngine(source.transformer, shape, rows=source.rows)
    slot = EngineSlot(partial(_usable_in_child, request.device, lambda: engine), engine)
    started = Started((slot,) * request.copies, source.facts, source.tokenizer, source.heads, source, threads)
    if request.device != "cpu":
        _check_against_own_modules(started, source, request)
    return started


def _start_sentence_transformers(sources: _Sources) -> Started:
    request = sources.request
    source = sources.load(request.precision)
    threads = _limit_torch_threads(request)
    make = partial(_usable_in_child, request.device, source.own_engine)
    slots = tuple(EngineSlot(make, source.own_engine()) for _ in range(request.copies))
    return Started(slots, source.facts, source.tokenizer, source.heads, source, threads)


def _usable_in_child(device: str, engine: Callable[[], Engine]) -> Engine:
    """Makes a torch engine usable in a forked child.

    Raises:
        EngineNotAvailableError: The device can't be used in a child.
    """
    if device != "cpu":
        raise EngineNotAvailableError(
            f"{device} can't be used in a process that was forked after the model was loaded; load the model in the "
            "child, or start processes by 'spawn' or 'forkserver'."
        )
    # OpenMP's threads stayed with the parent, and waiting for them would take for ever.
    set_torch_threads(1)
    logger.warning("in a forked process torch computes with one thread; load the model in the child for more")
    return engine()


def _limit_torch_threads(request: LoadRequest) -> int | None:
    """Keeps torch within the threads that a model on the CPU may use.

    torch has one number for the whole process, which other code may have set: it is raised only where the user asks
    for so many threads.

    Returns:
        The number, if it was changed.
    """
    import torch

    threads, now = share_threads(request.threads, request.copies)[0], torch.get_num_threads()
    if request.device == "cpu" and (threads < now or (threads > now and request.given_threads is not None)):
        logger.info("torch computes with %d threads from now on", threads)
        set_torch_threads(threads)
        return threads
    return None


def _check_against_own_modules(started: Started, source: Source, request: LoadRequest) -> None:
    """Compares the engine with the checkpoint's own modules once, since GPUs, drivers and kernels are many.

    Raises:
        EngineNotAvailableError: They disagree.
    """
    texts = ["A first text.", "Another one, which is a little longer than the first.", "Short."]
    tokens = started.tokenizer.tokenize(texts, started.facts.max_tokens)
    usable = texts_with_embeddings(tokens, started.facts)
    if not len(usable):
        return
    order = usable[np.argsort(-tokens.lengths[usable], kind="stable")]
    batch = TokenBatch(tokens.of(order), tokens.lengths[order])
    try:
        rows = started.engine.submit(batch).result()
    except Exception as error:  # whatever a driver or a kernel may raise on a device that we have not seen
        raise EngineNotAvailableError(f"engine='torch' fails on {request.device}: {error}") from error
    own = source.own_engine()
    expected = own.submit(batch).result()
    if request.purpose == "scores":
        got, right = (
            one_score_a_pair(engine.rows, source.heads, found)
            for engine, found in ((started.engine, rows), (own, expected))
        )
        agrees, how = np.allclose(got, right, *_TOLERANCE_OF_CHECK), f"scores {got.tolist()}, not {right.tolist()}"
    else:
        got, right = (
            one_row_a_text(engine.rows, source.facts.pooling, batch, found)
            for engine, found in ((started.engine, rows), (own, expected))
        )
        least = float(cosines(got, right).min())
        agrees, how = least >= _LEAST_COSINE_OF_CHECK, f"least cosine {least:.4f}"
    if not agrees:
        raise EngineNotAvailableError(
            f"engine='torch' disagrees with the checkpoint's own modules on {request.device} in {request.precision} "
            f"({how}); set engine='sentence-transformers', and please report it with the output of `bge info`."
        )
