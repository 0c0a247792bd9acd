"""Makes a prepared model out of a checkpoint's weights: the graph, rounded if asked for, and how well it agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bge_integrations.backend.checkpoint.files import Checkpoint
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
# Every fifth text is kept out of calibration, and agreement is measured on these.
_HELD_OUT = 5


def default_calibration_texts() -> list[str]:
    """Returns the texts that ship with the package: many languages, kinds and lengths."""
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
        model: The model.
        request: What was asked for.
        checkpoint: Its files.
        spec: The catalogue's row, or None for a model that is no BGE.
        precision: "float32", "bfloat16" or "int8".
        quantization: How to get int8; None takes `DEFAULT_QUANTIZATION`.
        calibration: Texts like those to come; None takes `default_calibration_texts`.
        query_instruction: What goes before a query by default, for the manifest.
        cache_key: The key of this package's cache that it is made for, for the manifest.

    Returns:
        The model; its manifest holds the measured agreement.
    """
    exact = build_graph(model.weights, model.shape, cls_only=model.rows == "cls")
    graph, calibrated_on, agreement = exact, None, None
    if precision != "float32":
        texts = list(calibration) if calibration is not None else default_calibration_texts()
        if precision == "int8":
            # Of a clone, since the quantiser may work in place and agreement needs the exact graph too.
            quantization = quantization or DEFAULT_QUANTIZATION
            graph, calibrated_on = _quantize(exact.clone(), model, quantization, texts)
        if precision == "int8" or computes_bfloat16():
            # Engines have locks, which an interrupt must not leave held.
            agreement = uninterrupted(
                partial(_agreement, model, exact, graph, precision, texts[::_HELD_OUT], request.threads)
            )
    name = request.model_name
    manifest = Manifest(
        purpose=request.purpose,
        source=Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name,
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
    """Returns the int8 graph, and how many texts it was calibrated on."""
    from bge_integrations.backend.engines.openvino.quantization import quantize_statically, quantize_weights

    if quantization == "dynamic":
        return quantize_weights(graph), None
    seen = [text for index, text in enumerate(texts) if index % _HELD_OUT] or texts
    samples = [graph_inputs(batch, model.shape) for batch in _batches(model, seen)]
    return quantize_statically(graph, samples), len(seen)


def _batches(model: Description, texts: Sequence[str]) -> Iterator[TokenBatch]:
    """Yields small batches of neighbouring lengths, some of them padded, as they will come in use."""
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
