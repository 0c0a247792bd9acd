"""Makes a prepared model from a checkpoint's weights: builds the graph, rounds it, and measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.location import name_without_path
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.display.steps import say_step
from bge_integrations.backend.engines.openvino.engine import computes_bfloat16, graph_inputs
from bge_integrations.backend.engines.openvino.graph import EncoderGraph, Int8Weights, build_graph
from bge_integrations.backend.guarantees.interrupts import uninterrupted
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.prepared.folder import Manifest, PreparedModel, Quantization, QuantizationChoice
from bge_integrations.backend.prepared.measuring import Measured, Way, batches_of, fastest, measure
from bge_integrations.catalogue import ModelSpec

logger = get_logger(__name__)

DEFAULT_QUANTIZATION: Quantization = "dynamic"

_DYNAMIC_PARTS: Mapping[Quantization, Int8Weights] = {"static": "attention output", "mixed": "outputs"}
"""What stays dynamic in the methods that need calibration."""

_DEFAULT_CALIBRATION = "calibration.txt"
_SAMPLE_TOKENS = 256
_HELD_OUT = 5
"""Every fifth text is left out of calibration. Agreement and speed are measured on these texts."""


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
    quantization: QuantizationChoice | None = None,
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
        The prepared model. Outside the cache, its manifest has the measured agreement and speed. Nobody would read
        those of a cache entry.
    """
    if cache_key is None and (precision == "int8" or (precision == "bfloat16" and computes_bfloat16())):
        texts = list(calibration) if calibration is not None else default_calibration_texts()
        ways = _ways(model, precision, quantization or DEFAULT_QUANTIZATION, texts)
        say_step("measuring the agreement with float32")
        # An interrupt must not leave an engine's locks held.
        measured = uninterrupted(partial(measure, model, ways, texts[::_HELD_OUT], request.threads))
        best = _chosen(measured, precision)
        way, agreement = best.way, best.agreement
        speeds = {one.way.name: one.tokens_per_s for one in measured}
    else:
        way, agreement, speeds = _way(model, precision), None, {}
    manifest = Manifest(
        purpose=request.purpose,
        source=name_without_path(request.model_name),
        revision=request.revision,
        content=checkpoint.fingerprint,
        model_id=spec.model_id if spec else None,
        query_instruction=query_instruction,
        precision=precision,
        quantization=way.quantization,
        calibration_texts=way.calibration_texts,
        agreement=agreement,
        tokens_per_s=speeds,
        rows=model.rows,
        facts=model.facts,
        cache_key=cache_key,
    )
    return PreparedModel(manifest=manifest, graph=way.graph, tokenizer=model.tokenizer, heads=model.heads)


def _graph(model: Description, int8: Int8Weights | None = None) -> EncoderGraph:
    return build_graph(model.weights, model.shape, cls_only=model.rows == "cls", int8=int8)


def _way(model: Description, precision: str) -> Way:
    """Returns how a model is computed in a precision if nothing else is asked for."""
    if precision == "int8":
        return Way(_graph(model, "all"), precision, DEFAULT_QUANTIZATION)
    return Way(_graph(model), precision)


def _ways(model: Description, precision: str, choice: QuantizationChoice, texts: Sequence[str]) -> list[Way]:
    """Returns float32, what to compare with on this machine, and the candidates in the precision that is asked for."""
    exact = _way(model, "float32")
    ways = [exact]
    if precision == "bfloat16" or (choice == "fastest" and computes_bfloat16()):
        ways.append(Way(exact.graph, "bfloat16"))
    if precision == "int8" and choice in ("dynamic", "fastest"):
        ways.append(_way(model, "int8"))
    ways += [_calibrated(model, method, texts) for method in _DYNAMIC_PARTS if choice in (method, "fastest")]
    return ways


def _chosen(measured: Sequence[Measured], precision: str) -> Measured:
    """Returns the fastest candidate; a log record says where another precision would be better."""
    best = fastest([one for one in measured if one.way.precision == precision])
    better = [one for one in measured if one.way.precision == "bfloat16" and one.tokens_per_s > best.tokens_per_s]
    if better:
        logger.warning(
            "bfloat16 is faster than int8 on this processor (%.0f and %.0f tokens/s), and nearer to float32: prepare "
            "the model with precision='bfloat16'",
            better[0].tokens_per_s,
            best.tokens_per_s,
        )
    return best


def _calibrated(model: Description, method: Quantization, texts: Sequence[str]) -> Way:
    from bge_integrations.backend.engines.openvino.quantization import quantize_statically

    say_step("measuring ranges on the calibration texts")
    seen = [text for index, text in enumerate(texts) if index % _HELD_OUT] or texts
    graph = _graph(model, _DYNAMIC_PARTS[method])
    samples = [graph_inputs(batch, model.shape, graph.words) for batch in batches_of(model, seen, _SAMPLE_TOKENS)]
    return Way(quantize_statically(graph, samples), "int8", method, calibration_texts=len(seen))
