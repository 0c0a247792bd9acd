"""Makes a prepared model out of a checkpoint's weights: the graph, rounded if asked for, and how well it agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.batching import plan_batches
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.backend.engines.openvino.engine import OpenVinoEngine, computes_bfloat16, graph_inputs
from bge_integrations.backend.engines.openvino.graph import build_graph
from bge_integrations.backend.guarantees.interrupts import uninterrupted
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.lookups import texts_with_embeddings
from bge_integrations.backend.model.pooling import cosines, one_row_a_text
from bge_integrations.backend.prepared.folder import Agreement, Manifest, PreparedModel, Quantization

if TYPE_CHECKING:
    from bge_integrations.backend.engines.openvino.library import ov
    from bge_integrations.backend.torch_models.base import Source

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
    source: Source,
    *,
    precision: str,
    quantization: Quantization | None = None,
    calibration: Sequence[str] | None = None,
    query_instruction: str | None = None,
    cache_key: str | None = None,
) -> PreparedModel:
    """Makes a prepared model.

    Args:
        source: The model, in float32, one that `has_known_encoder`.
        precision: "float32", "bfloat16" or "int8".
        quantization: How to get int8; None takes `DEFAULT_QUANTIZATION`.
        calibration: Texts like those to come; None takes `default_calibration_texts`.
        query_instruction: What goes before a query by default, for the manifest.
        cache_key: The key of this package's cache that it is made for, for the manifest.

    Returns:
        The model; its manifest holds the measured agreement.
    """
    shape = source.facts.encoder
    if shape is None:
        raise AssertionError("has_known_encoder says otherwise")
    weights = {name: tensor.numpy() for name, tensor in source.transformer.state_dict().items()}
    exact = build_graph(weights, shape, cls_only=source.rows == "cls")
    graph, calibrated_on, agreement = exact, None, None
    if precision != "float32":
        texts = list(calibration) if calibration is not None else default_calibration_texts()
        if precision == "int8":
            # Of a clone, since the quantiser may work in place and agreement needs the exact graph too.
            quantization = quantization or DEFAULT_QUANTIZATION
            graph, calibrated_on = _quantize(exact.clone(), source, shape, quantization, texts)
        if precision == "int8" or computes_bfloat16():
            # Engines have locks, which an interrupt must not leave held.
            agreement = uninterrupted(partial(_agreement, source, shape, exact, graph, precision, texts[::_HELD_OUT]))
    spec, name = source.spec, source.request.model_name
    manifest = Manifest(
        purpose=source.request.purpose,
        source=Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name,
        revision=source.request.revision,
        content=source.checkpoint.fingerprint,
        model_id=spec.model_id if spec else None,
        query_instruction=query_instruction,
        precision=precision,
        quantization=quantization,
        calibration_texts=calibrated_on,
        agreement=agreement,
        rows=source.rows,
        facts=source.facts,
        cache_key=cache_key,
    )
    return PreparedModel(manifest=manifest, graph=graph, tokenizer=source.tokenizer, heads=source.heads)


def _quantize(
    graph: ov.Model, source: Source, shape: EncoderShape, quantization: Quantization, texts: Sequence[str]
) -> tuple[ov.Model, int | None]:
    """Returns the int8 graph, and how many texts it was calibrated on."""
    from bge_integrations.backend.engines.openvino.quantization import quantize_statically, quantize_weights

    if quantization == "dynamic":
        return quantize_weights(graph), None
    seen = [text for index, text in enumerate(texts) if index % _HELD_OUT] or texts
    samples = [graph_inputs(batch, shape) for batch in _batches(source, seen)]
    return quantize_statically(graph, samples), len(seen)


def _batches(source: Source, texts: Sequence[str]) -> Iterator[TokenBatch]:
    """Yields small batches of neighbouring lengths, some of them padded, as they will come in use."""
    limit = min(_LONGEST_SAMPLE, source.facts.max_tokens)
    tokens = source.tokenizer.tokenize(texts, limit)
    usable = texts_with_embeddings(tokens, source.facts)
    if len(usable) < len(texts):
        logger.warning(
            "%d of %d texts have tokens that the model has no embedding for", len(texts) - len(usable), len(texts)
        )
    for indices in plan_batches(tokens.lengths[usable], batch_tokens=_SAMPLE_TOKENS):
        yield TokenBatch(tokens.of(usable[indices]), tokens.lengths[usable[indices]])


def _agreement(
    source: Source, shape: EncoderShape, exact: ov.Model, rounded: ov.Model, precision: str, texts: Sequence[str]
) -> Agreement:
    batches = list(_batches(source, texts))
    expected, got = (
        np.concatenate(
            [
                one_row_a_text(engine.rows, source.facts.pooling, batch, engine.submit(batch).result())
                for batch in batches
            ]
        )
        for engine in (
            OpenVinoEngine(graph, shape, rows=source.rows, precision=how, threads=source.request.threads)
            for graph, how in ((exact, "float32"), (rounded, precision))
        )
    )
    found = cosines(expected, got)
    return Agreement(
        texts=len(found), mean_cosine=round(float(found.mean()), 6), least_cosine=round(float(found.min()), 6)
    )
