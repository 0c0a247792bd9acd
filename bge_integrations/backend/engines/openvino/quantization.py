"""int8 graphs by post-training quantisation. Only this module needs the quantiser, nncf.

- "dynamic", the default: weights in int8 with one scale per output. Activations are rounded while the graph runs, in
  groups of 128. It needs no texts and takes seconds.
- "static": weights and activations in int8. The ranges of activations are measured on calibration texts, and outliers
  are moved into the weights (SmoothQuant, https://arxiv.org/abs/2211.10438). It takes up to minutes.

Measured with the real weights of all-MiniLM-L6-v2 on 989 docstrings of the standard library; the query is the first
sentence, the document is the rest. nDCG@10: float32 57.61, dynamic 57.68, static 57.24. Cosine with float32: dynamic
mean 0.9990, minimum 0.9966; static mean 0.9980, minimum 0.9816. With random weights of the BGE shapes, the minimum
cosine is 0.9988 (dynamic) and 0.943 (static). Static is up to 20 % faster on some shapes and not faster on others. This
does not justify its loss of accuracy on weights that it was not tuned for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.display.quiet import quiet_nncf
from bge_integrations.backend.engines.openvino.library import import_quantizer, ov

_SMOOTH_QUANT_ALPHA = 0.95

Inputs = dict[str, NDArray[np.int32] | NDArray[np.float32]]
"""Inputs of the graph, by name."""


def require_quantizer() -> None:
    """Checks that nncf is installed, before a model is loaded for it; see `import_quantizer`."""
    import_quantizer()


def quantize_statically(graph: ov.Model, samples: Sequence[Inputs]) -> ov.Model:
    """Quantises weights and activations.

    Args:
        graph: A float32 graph from `build_graph`. It is not changed.
        samples: Typical inputs of the graph.
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
    """Quantises the weights. Activations are rounded when the graph runs."""
    nncf = import_quantizer()
    with quiet_nncf():
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
