"""Starts the engines that compute with torch: our own, and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.interface import Engine, TokenBatch
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.loading.sources import Sources
from bge_integrations.backend.loading.started import Started
from bge_integrations.backend.machine.cpu import set_torch_threads, share_threads
from bge_integrations.backend.model.heads import one_score_a_pair
from bge_integrations.backend.model.lookups import texts_with_embeddings
from bge_integrations.backend.model.pooling import cosines, one_row_a_text
from bge_integrations.backend.scheduler import EngineSlot, TimeLimits
from bge_integrations.errors import EngineNotAvailableError

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source

logger = get_logger(__name__)

# Up to two batches run when a query comes. Then it waits for 8 ms, or for 50 ms if it is the first one for a while.
BULK_LIMITS = TimeLimits(between_interactive=0.004, alone=0.025)

_LEAST_COSINE_OF_CHECK = 0.999
_TOLERANCE_OF_CHECK = 0.02, 0.02  # relative and absolute tolerance of scores


def start_torch(sources: Sources) -> Started | None:
    """Starts our own torch engine; returns `None` for an encoder that it can't run."""
    from bge_integrations.backend.engines.torch.engine import TorchEngine

    request = sources.request
    source = sources.load(request.precision)
    shape = source.facts.encoder
    if not source.has_known_encoder or shape is None:
        return None
    threads = _limit_torch_threads(request)
    engine = TorchEngine(source.transformer, shape, rows=source.rows)
    limits = BULK_LIMITS if request.device.startswith("cuda") else None
    make = partial(_usable_in_child, request.device, lambda: engine)
    slot = EngineSlot(make, engine, stop=engine.close, bulk_limits=limits)
    started = Started((slot,) * request.copies, source.facts, source.tokenizer, source.heads, source, threads)
    if request.device != "cpu":
        _check_against_own_modules(started, source, request)
    return started


def start_sentence_transformers(sources: Sources) -> Started:
    """Starts sentence-transformers, which runs every model."""
    request = sources.request
    source = sources.load(request.precision)
    threads = _limit_torch_threads(request)
    make = partial(_usable_in_child, request.device, source.own_engine)
    slots = tuple(EngineSlot(make, source.own_engine()) for _ in range(request.copies))
    return Started(slots, source.facts, source.tokenizer, source.heads, source, threads)


def _usable_in_child(device: str, engine: Callable[[], Engine]) -> Engine:
    """Makes a torch engine usable in a forked process.

    Raises:
        EngineNotAvailableError: The device is not the CPU.
    """
    if device != "cpu":
        raise EngineNotAvailableError(
            f"{device} can't be used in a process that was forked after the model was loaded; load the model in the "
            "child process, or start processes by 'spawn' or 'forkserver'."
        )
    # OpenMP's threads don't exist in the child, which would wait for them for ever.
    set_torch_threads(1)
    logger.warning("torch computes with one thread in a forked process; for more, load the model in the child process")
    return engine()


def _limit_torch_threads(request: LoadRequest) -> int | None:
    """Limits torch to the threads that a model on the CPU may use; returns the number if it was changed.

    torch has one number for the whole process, which other code may have set. It is raised only if the user passed a
    number of threads.
    """
    import torch

    threads, now = share_threads(request.threads, request.copies)[0], torch.get_num_threads()
    if request.device == "cpu" and (threads < now or (threads > now and request.given_threads is not None)):
        logger.info("torch computes with %d threads from now on", threads)
        set_torch_threads(threads)
        return threads
    return None


def _check_against_own_modules(started: Started, source: Source, request: LoadRequest) -> None:
    """Compares the engine's results with the checkpoint's own modules, since not every GPU and driver was tested.

    Raises:
        EngineNotAvailableError: The results differ, or the engine fails.
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
    except Exception as error:  # drivers and kernels raise many classes of errors
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
            f"engine='torch' gives other results than the checkpoint's own modules on {request.device} in "
            f"{request.precision} ({how}); set engine='sentence-transformers', and please report this with the output "
            "of `bge info`."
        )
