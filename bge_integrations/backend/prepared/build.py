"""Makes a prepared model from a checkpoint's weights: builds the graph, rounds it, and measures the agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.location import name_without_path
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.batching import plan_batches
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, computes_bfloat16, graph_inputs
from bge_integrations.backend.engines.openvino.graph import build_graph
from bge_integrations.backend.guarantees.interrupts import uninterrupted
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.model.lookups import texts_with_embeddings
from bge_integrations.backend.model.pooling import cosines, one_row_a_text
from bge_integrations.backend.prepared.folder import Agreement, Manifest, PreparedModel, Quantization
from bge_integrations.catalogue import ModelSpec

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.library import ov

logger = get_logger(__name__)

DEFAULT_QUANTIZATION: Quantization = "dynamic"

_DEFAULT_CALIBRATION = "calibration.txt"
_SAMPLE_TOKENS = 256
_LONGEST_SAMPLE = 256
_HELD_OUT = 5
"""Every fifth text is left out of calibration. Agreement is measured on these texts."""


def default_calibration_texts() -> list[str]:
    """Returns the calibration texts of the package, in many languages, kinds and lengths."""
    file = resources.files("bge_integrations") / "data" / _DEFAULT_CALIBRATION
    return file.read_text(encoding="utf-8").splitlines()


def prepared_from(
    model: Description,
    request: LoadRequest,
    checkpoint: Checkpoint,
    spec: ModelSpec | None,
    *,
    precision: str,
    quantization: Quantization | None = None,
    calibration: Sequence[str] | None = None,
    query_instruction: str | None = None,
    cache_key: str | None = None,
) -> PreparedModel:
    """Makes a prepared model.

    Args:
        model: Description of the model, with its weights.
        request: The load request.
        checkpoint: The model's files.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        precision: "float32", "bfloat16" or "int8".
        quantization: Method for int8; `None`: `DEFAULT_QUANTIZATION`.
        calibration: Texts like those that the model will read; `None`: `default_calibration_texts`.
        query_instruction: Default instruction before a query, for the manifest.
        cache_key: Key of the cache entry, for the manifest; `None` outside the cache.

    Returns:
        The prepared model. Its manifest has the measured agreement.
    """
    exact = build_graph(model.weights, model.shape, cls_only=model.rows == "cls")
    graph, calibrated_on, agreement = exact, None, None
    if precision != "float32":
        texts = list(calibration) if calibration is not None else default_calibration_texts()
        if precision == "int8":
            # A clone, since the quantiser may change the graph in place, and agreement needs the exact graph too.
            quantization = quantization or DEFAULT_QUANTIZATION
            graph, calibrated_on = _quantize(exact.clone(), model, quantization, texts)
        if precision == "int8" or computes_bfloat16():
            # An interrupt must not leave an engine's locks held.
            agreement = uninterrupted(
                partial(_agreement, model, exact, graph, precision, texts[::_HELD_OUT], request.threads)
            )
    manifest = Manifest(
        purpose=request.purpose,
        source=name_without_path(request.model_name),
        revision=request.revision,
        content=checkpoint.fingerprint,
        model_id=spec.model_id if spec else None,
        query_instruction=query_instruction,
        precision=precision,
        quantization=quantization,
        calibration_texts=calibrated_on,
        agreement=agreement,
        rows=model.rows,
        facts=model.facts,
        cache_key=cache_key,
    )
    return PreparedModel(manifest=manifest, graph=graph, tokenizer=model.tokenizer, heads=model.heads)


def _quantize(
    graph: ov.Model, model: Description, quantization: Quantization, texts: Sequence[str]
) -> tuple[ov.Model, int | None]:
    """Returns the int8 graph and the number of calibration texts; `None` if it needed no calibration."""
    from bge_integrations.backend.engines.openvino.quantization import quantize_statically, quantize_weights

    if quantization == "dynamic":
        return quantize_weights(graph), None
    seen = [text for index, text in enumerate(texts) if index % _HELD_OUT] or texts
    samples = [graph_inputs(batch, model.shape) for batch in _batches(model, seen)]
    return quantize_statically(graph, samples), len(seen)


def _batches(model: Description, texts: Sequence[str]) -> Iterator[TokenBatch]:
    """Yields small batches of texts with similar lengths, some of them padded, like batches in use."""
    limit = min(_LONGEST_SAMPLE, model.facts.max_tokens)
    tokens = model.tokenizer.tokenize(texts, limit)
    usable = texts_with_embeddings(tokens, model.facts)
    if len(usable) < len(texts):
        logger.warning(
            "%d of %d texts have tokens that the model has no embedding for", len(texts) - len(usable), len(texts)
        )
    for indices in plan_batches(tokens.lengths[usable], batch_tokens=_SAMPLE_TOKENS):
        yield TokenBatch(tokens.of(usable[indices]), tokens.lengths[usable[indices]])


def _agreement(
    model: Description, exact: ov.Model, rounded: ov.Model, precision: str, texts: Sequence[str], threads: int
) -> Agreement:
    batches = list(_batches(model, texts))
    expected, got = (
        np.concatenate(
            [
                one_row_a_text(engine.rows, model.facts.pooling, batch, engine.submit(batch).result())
                for batch in batches
            ]
        )
        for engine in (
            OpenVinoEngine(graph, model.shape, rows=model.rows, precision=how, threads=threads)
            for graph, how in ((exact, "float32"), (rounded, precision))
        )
    )
    found = cosines(expected, got)
    return Agreement(
        texts=len(found), mean_cosine=round(float(found.mean()), 6), least_cosine=round(float(found.min()), 6)
    )
