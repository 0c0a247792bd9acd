"""Runs an encoder's graph on the CPU: one batch at a time, on all cores."""

from __future__ import annotations

import ctypes
import threading
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import Computed, EngineOutOfMemory, Rows, TokenBatch
from bge_integrations.backend.engines.memory import memory_errors
from bge_integrations.backend.engines.openvino.graph import MASKED, EncoderGraph
from bge_integrations.backend.engines.openvino.library import openvino_core, ov
from bge_integrations.backend.engines.openvino.words import WordTable
from bge_integrations.backend.guarantees.forks import native_code
from bge_integrations.backend.machine.cpu import share_threads, usable_memory
from bge_integrations.errors import EngineNotAvailableError

# Tokens per second of small-en on two cores with batches of 256, 512, 1024 and 2048 tokens: float32 3647, 3965, 4007,
# 3926; bfloat16 6071, 7019, 6681, 6925. A query waits longer behind larger batches.
_BATCH_TOKENS_A_THREAD = 256
_LEAST_BATCH_TOKENS = 512
# The number of activations that share a scale, in a graph with int8 weights only. Larger groups are faster and less
# exact. Groups of 192 on small-en and of 256 on small-zh and base-en take 4, 5 and 5 % less processor time, and whole
# rows 5, 7 and 10 %. But on the real weights of all-MiniLM-L6-v2, groups of 192 raise the mean rounding error
# (1 - cosine) by 29 % and lose 0.2 to 0.3 points of nDCG@10, groups of 384 raise it by 89 %.
_DYNAMIC_GROUP = "128"
# OpenVINO compiles kernels for every new shape of a batch, and keeps those of hundreds of shapes, up to 0.7 MB each. So
# batches are computed in few shapes. Without this, 5,000 batches of documents added 400 MB to a small int8 engine (with
# it 150), and 4,000 batches of 1 to 32 queries added 340 MB (with it 170). The first query of a new width takes 4 ms
# longer than the others, whose time grows by 2 to 3 % a token.
_BITS_OF_WIDTHS = 6
_BITS_OF_NUMBERS = _BITS_OF_QUERIES = 4
_SHORT_QUERY = 64
_Number = TypeVar("_Number", np.int32, np.bool_)
_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}
# Several engines with few threads are 4 to 25 % faster than one engine with all threads, because the threads of an
# engine wait for each other at every operation. But each engine holds its own copy of the layers' weights.
_MOST_HELPERS = 8
_SHARE_OF_MEMORY = 16
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def threads_of_helpers(shape: EncoderShape, precision: str, threads: int) -> list[int]:
    """Plans the helpers: further engines for large numbers of documents.

    Args:
        shape: The encoder's shape.
        precision: The precision of the engines.
        threads: Number of threads to share.

    Returns:
        The threads of each helper. All copies of the weights together take at most a sixteenth of the memory; the list
        is empty if not even one copy fits.
    """
    affordable = usable_memory() // _SHARE_OF_MEMORY // (shape.layer_weights * _BYTES[precision])
    count = min(threads, affordable, _MOST_HELPERS)
    return share_threads(threads, count)


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    with openvino_core() as core:
        return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def settings_of(precision: str, threads: int) -> dict[str, str]:
    """Returns the settings with which OpenVINO compiles a graph; the arguments are those of `OpenVinoEngine`."""
    # For the floating-point parts of a quantised graph: bfloat16 rounds less than the quantisation does.
    unrounded = "bfloat16" if precision == "int8" and computes_bfloat16() else "float32"
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[unrounded if precision == "int8" else precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _DYNAMIC_GROUP,  # other graphs ignore it
        # With pinning, a second process would compete for the same cores while others are idle.
        "ENABLE_CPU_PINNING": "NO",
    }


def graph_inputs(
    batch: TokenBatch, shape: EncoderShape, words: WordTable, batch_tokens: int = 0
) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
    """Returns the inputs of an `EncoderGraph` by name, with the texts and tokens of `_computed_shape`."""
    ids, is_token, is_second = batch.padded(shape.pad_id), batch.is_token, batch.is_second
    computed = _computed_shape(batch, shape, batch_tokens)
    if computed != ids.shape:
        ids, is_token = _enlarged(ids, computed, fill=shape.pad_id), _enlarged(is_token, computed, fill=False)
        is_second = None if is_second is None else _enlarged(is_second, computed, fill=False)
    mask = np.where(is_token, np.float32(0), MASKED)[:, None, None]
    return {"words": words.rows(ids), "positions": shape.position_rows(ids, is_second), "mask": mask}


def _computed_shape(batch: TokenBatch, shape: EncoderShape, batch_tokens: int) -> tuple[int, int]:
    """Returns the texts and tokens in which a batch is computed.

    Widths above 64 tokens are one of 32 for each power of two, so about 1 % of tokens is added. Widths of short queries
    are one of 8 for each power of two, and so are numbers of texts, where a batch of `batch_tokens` has room.
    """
    texts, longest = batch.is_token.shape
    is_short_query = batch.priority == "interactive" and longest <= _SHORT_QUERY
    width = _rounded_up(longest, _BITS_OF_QUERIES if is_short_query else _BITS_OF_WIDTHS)
    width = max(min(width, shape.longest_text), longest)
    return max(min(_rounded_up(texts, _BITS_OF_NUMBERS), batch_tokens // width), texts), width


def _rounded_up(number: int, bits: int) -> int:
    """Returns the next number that has only zeros after its first bits."""
    step = 1 << max((number - 1).bit_length() - bits, 0)
    return -(-number // step) * step


def _enlarged(values: NDArray[_Number], computed: tuple[int, int], *, fill: int) -> NDArray[_Number]:
    enlarged = np.full(computed, fill, dtype=values.dtype)
    enlarged[: values.shape[0], : values.shape[1]] = values
    return enlarged


class OpenVinoEngine:
    """An encoder on the CPU.

    The graph is compiled for one stream. With two streams, OpenVINO 2026.4 computes wrong results: int8 vectors had a
    cosine of 0.1 to 0.9 with the correct ones, and float32 batches of one shape were wrong in 4 of 11 new processes (in
    none of 60 later ones). Two engines with one stream each give the same vectors as one engine, bit by bit.
    """

    name = "openvino"
    max_texts: int | None = None
    parallel_batches = 1

    def __init__(self, graph: EncoderGraph, shape: EncoderShape, *, rows: Rows, precision: str, threads: int) -> None:
        """Compiles a graph.

        Args:
            graph: A graph from `build_graph`, or read from disk.
            shape: The encoder's shape.
            rows: "cls" or "tokens", as in `build_graph`.
            precision: "float32", "bfloat16" or, for a quantised graph, "int8".
            threads: Number of threads.

        Raises:
            EngineNotAvailableError: The memory is too small.
        """
        self.rows: Rows = rows
        self.batch_tokens = max(_LEAST_BATCH_TOKENS, _BATCH_TOKENS_A_THREAD * threads)
        self._shape = shape
        self._graph = graph
        settings = settings_of(precision, threads)
        try:
            with memory_errors(), openvino_core() as core:
                self._request = core.compile_model(graph.model, "CPU", settings).create_infer_request()
        except EngineOutOfMemory as error:
            raise EngineNotAvailableError(
                f"OpenVINO has too little memory to compile the model ({error}). Use precision='int8' or 'bfloat16', "
                "a smaller model, or a machine with more memory."
            ) from error
        graph.forget_weights()
        self._has_computed = False
        self._turn = threading.Lock()

    def submit(self, batch: TokenBatch) -> Computed:
        """See `Engine.submit`."""
        with memory_errors():
            inputs = graph_inputs(batch, self._shape, self._graph.words, self.batch_tokens)
            with self._turn, native_code():
                for name, array in inputs.items():
                    self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                self._request.infer(share_outputs=True)
                if not self._has_computed:  # the first batch copies the weights that compiling has left
                    self._has_computed = True
                    self._graph.forget_weights()
                rows: NDArray[np.float32] = self._request.get_output_tensor().data
                # The request overwrites its output with the next batch, so the rows are copied.
                texts, longest = batch.is_token.shape
                if self.rows == "tokens":
                    return Computed(rows[:texts, :longest][batch.is_token])
                return Computed(rows[:texts].copy())

    def abandon(self) -> None:
        """See `Engine.abandon`. The request is never freed: it would wait for threads of the parent, and abort."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._request))
