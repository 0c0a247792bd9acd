"""int8 graphs by post-training quantisation. The quantiser, nncf, is needed here and nowhere else.

- "dynamic", the default: weights in int8, one scale for each output; activations are rounded while the graph runs, 128
  at a time. Needs no texts, takes seconds.
- "static": weights and activations in int8, with the ranges of activations measured on calibration texts and outliers
  moved into the weights (SmoothQuant, https://arxiv.org/abs/2211.10438). Takes up to minutes.

Measured on the real weights of all-MiniLM-L6-v2, 989 first sentences of standard-library docstrings searching for the
rest of theirs, against float32 (nDCG@10 57.61): dynamic 57.68, mean cosine 0.9990, least 0.9966; static 57.24, 0.9980,
0.9816. On random weights of the BGE shapes: least cosine 0.9988 and 0.943. Static is up to 20 % faster on some shapes
and no faster on others: too little for what it costs on weights that it was not tuned for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.display.quiet import quiet_nncf
from bge_integrations.backend.engines.openvino.library import import_quantizer, ov

_SMOOTH_QUANT_ALPHA = 0.95

Inputs = dict[str, NDArray[np.int32] | NDArray[np.float32]]
"""Of the graph, by name."""


def require_quantizer() -> None:
    """Checks that nncf is there, before anything is loaded for it.

    Raises:
        MissingExtraError: It is not.
    """
    import_quantizer()


def quantize_statically(graph: ov.Model, samples: Sequence[Inputs]) -> ov.Model:
    """Quantises weights and activations.

    Args:
        graph: From `build_graph`, float32; not changed.
        samples: Inputs of the graph that are like those to come.
    """
    nncf = import_quantizer()
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH_QUANT_ALPHA)
    with quiet_nncf():
        return nncf.quantize(
            graph,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
        )


def quantize_weights(graph: ov.Model) -> ov.Model:
    """Quantises weights; activations are rounded when the graph runs."""
    nncf = import_quantizer()
    with quiet_nncf():
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
