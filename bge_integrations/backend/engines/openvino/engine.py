"""Runs an encoder's graph on the CPU: one batch at a time, on all cores."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Computed, EngineOutOfMemory, Rows, TokenBatch
from bge_integrations.backend.engines.memory import memory_errors
from bge_integrations.backend.engines.openvino.graph import MASKED
from bge_integrations.backend.engines.openvino.library import ov
from bge_integrations.backend.guarantees.forks import native_code
from bge_integrations.backend.machine.cpu import share_threads, usable_memory
from bge_integrations.errors import EngineNotAvailableError

# Tokens per second of small-en on two cores, by tokens a batch: float32 256 3647, 512 3965, 1024 4007, 2048 3926;
# bfloat16 6071, 7019, 6681, 6925. Larger ones only make a query wait longer for its turn.
_BATCH_TOKENS_A_THREAD = 256
_LEAST_BATCH_TOKENS = 512
_DYNAMIC_GROUP = "128"
_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}
# Several engines of few threads compute 4 to 25 % more than one with all threads, which wait for each other at every
# operation; but each holds the layers' weights in a layout of its own.
_MOST_HELPERS = 8
_SHARE_OF_MEMORY = 16
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def threads_of_helpers(shape: EncoderShape, precision: str, threads: int) -> list[int]:
    """Plans engines for large amounts of documents, beside the one that queries use.

    Args:
        shape: The encoder's shape.
        precision: How it computes.
        threads: Processor cores to share.

    Returns:
        The threads of each; empty where their copies of the weights would take more than a sixteenth of the memory.
    """
    affordable = usable_memory() // _SHARE_OF_MEMORY // (shape.layer_weights * _BYTES[precision])
    count = min(threads, affordable, _MOST_HELPERS)
    return share_threads(threads, count)


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    with native_code():
        return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def graph_inputs(batch: TokenBatch, shape: EncoderShape) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
    """Returns a batch as the graph of `build_graph` takes it."""
    ids = batch.padded(shape.pad_id)
    mask = np.where(batch.is_token, np.float32(0), MASKED)[:, None, None]
    return {"ids": ids, "positions": shape.position_rows(ids, batch.is_second), "mask": mask}


class OpenVinoEngine:
    """An encoder on the CPU.

    The graph is compiled for a single stream. With two, OpenVINO 2026.4 computes wrongly: int8 vectors had a cosine of
    0.1 to 0.9 with the right ones, and float32 batches of one shape came out wrong in 4 of 11 new processes (in none
    of 60 later ones). Two engines of one stream each give the same vectors as one, to the last bit.
    """

    name = "openvino"
    parallel_batches = 1

    def __init__(self, graph: ov.Model, shape: EncoderShape, *, rows: Rows, precision: str, threads: int) -> None:
        """Compiles a graph.

        Args:
            graph: From `build_graph`, or read from disk.
            shape: The encoder's shape.
            rows: "cls" or "tokens", as the graph was built.
            precision: How it computes: "float32", "bfloat16" or, for a quantised graph, "int8".
            threads: Processor cores to use.

        Raises:
            EngineNotAvailableError: Memory is too small.
        """
        self.rows: Rows = rows
        self.batch_tokens = max(_LEAST_BATCH_TOKENS, _BATCH_TOKENS_A_THREAD * threads)
        self._shape = shape
        # What a quantised graph leaves in floating point is rounded less by bfloat16 than by the quantisation.
        lossy = "bfloat16" if computes_bfloat16() else "float32"
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[lossy if precision == "int8" else precision],
            # Of a graph whose weights alone are int8: so many activations share a scale. Others ignore it.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _DYNAMIC_GROUP,
            # Pinned, a second process would compete for the same cores while others stand idle.
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            with memory_errors(), native_code():
                self._request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()
        except EngineOutOfMemory as error:
            raise EngineNotAvailableError(
                f"OpenVINO has too little memory to compile the model ({error}). Use precision='int8' or 'bfloat16', "
                "a smaller model, or a machine with more memory."
            ) from error
        self._turn = threading.Lock()

    def submit(self, batch: TokenBatch) -> Computed:
        """See `Engine.submit`."""
        with memory_errors():
            inputs = graph_inputs(batch, self._shape)
            with self._turn, native_code():
                for name, array in inputs.items():
                    self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                self._request.infer(share_outputs=True)
                rows: NDArray[np.float32] = self._request.get_output_tensor().data
                # The output belongs to the request, which computes the next batch into it.
                return Computed(rows[batch.is_token] if self.rows == "tokens" else rows.copy())

    def abandon(self) -> None:
        """See `Engine.abandon`. Never freed: it would wait for threads that only the parent has, and abort."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._request))
