"""Runs an encoder's graph: several batches side by side for many texts, all cores on one batch for a single query."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from bge_integrations.backend.architecture import EncoderShape
from bge_integrations.backend.engines import Computed, PendingRows, Rows, TokenBatch
from bge_integrations.backend.engines.openvino.graph import MASKED

# Tokens per second of float32 small-en on two cores, two batches of one thread side by side: 128 tokens a batch 4049,
# 256 4135, 512 4254, 1024 4193, 2048 4100. Larger ones only make a query wait longer for its turn.
_BATCH_TOKENS = 512
_DYNAMIC_GROUP = "128"
_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def graph_inputs(batch: TokenBatch, shape: EncoderShape) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
    """Returns a batch as the graph of `build_graph` takes it."""
    ids = batch.padded(shape.pad_id)
    mask = np.where(batch.is_token, np.float32(0), MASKED)[:, None, None]
    return {"ids": ids, "positions": shape.position_ids(ids), "mask": mask}


class OpenVinoEngine:
    """An encoder on the CPU.

    The graph is compiled twice, each time when it is first needed: for throughput (as many batches side by side as pay
    off, few threads each), and for latency (one batch, all threads). OpenVINO packs the weights of each anew.
    """

    name = "openvino"
    batch_tokens = _BATCH_TOKENS

    def __init__(self, graph: ov.Model, shape: EncoderShape, *, rows: Rows, precision: str, threads: int) -> None:
        """Takes a graph.

        Args:
            graph: From `build_graph`, or read from disk.
            shape: The encoder's shape.
            rows: "cls" or "tokens", as the graph was built.
            precision: How it computes: "float32", "bfloat16" or, for a quantised graph, "int8".
            threads: Processor cores to use.
        """
        self.rows: Rows = rows
        self._graph = graph
        self._shape = shape
        self._threads = threads
        # What a quantised graph leaves in floating point is rounded less by bfloat16 than by the quantisation.
        lossy = "bfloat16" if computes_bfloat16() else "float32"
        self._hint = _PRECISION_HINTS[lossy if precision == "int8" else precision]
        self._compiling = threading.Lock()
        self._latency: ov.InferRequest | None = None
        self._throughput: _Streams | None = None
        self._turn = threading.Lock()

    @property
    def parallel_batches(self) -> int:
        """Two for each stream: one that runs and one that waits for it."""
        return 2 * len(self._streams().requests)

    def submit(self, batch: TokenBatch) -> PendingRows:
        """See `Engine.submit`."""
        if batch.alone:
            with self._turn:
                return Computed(self._run(self._single(), batch))
        return self._streams().start(self._run, batch)

    def _run(self, request: ov.InferRequest, batch: TokenBatch) -> NDArray[np.float32]:
        inputs = graph_inputs(batch, self._shape)
        # Not request.infer(), which computes in the thread that calls it instead of one of the streams: once in a while,
        # in a new process, batches of some shape then came out wrong.
        request.start_async(inputs, share_inputs=True)
        request.wait()
        rows: NDArray[np.float32] = request.get_output_tensor().data
        # The output belongs to the request, which computes the next batch into it.
        return rows[batch.is_token] if self.rows == "tokens" else rows.copy()

    def _single(self) -> ov.InferRequest:
        with self._compiling:
            if self._latency is None:
                self._latency = self._compile("LATENCY").create_infer_request()
            return self._latency

    def _streams(self) -> _Streams:
        with self._compiling:
            if self._throughput is None:
                self._throughput = _Streams(self._compile("THROUGHPUT"))
            return self._throughput

    def _compile(self, performance_hint: str) -> ov.CompiledModel:
        return ov.Core().compile_model(
            self._graph,
            "CPU",
            {
                "PERFORMANCE_HINT": performance_hint,
                "INFERENCE_NUM_THREADS": str(self._threads),
                "INFERENCE_PRECISION_HINT": self._hint,
                # Of a graph whose weights alone are int8: so many activations share a scale. Others ignore it.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _DYNAMIC_GROUP,
                # Pinned, a second process would compete for the same cores while others stand idle.
                "ENABLE_CPU_PINNING": "NO",
            },
        )


class _Streams:
    """A graph compiled for throughput, with a thread and a request for each of its streams."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.requests = [compiled.create_infer_request() for _ in range(count)]
        self._idle = deque(self.requests)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="bge-openvino")

    def start(
        self, run: Callable[[ov.InferRequest, TokenBatch], NDArray[np.float32]], batch: TokenBatch
    ) -> Future[NDArray[np.float32]]:
        """Hands a batch to the next stream that is idle."""
        return self._threads.submit(self._run_on_idle, run, batch)

    def _run_on_idle(
        self, run: Callable[[ov.InferRequest, TokenBatch], NDArray[np.float32]], batch: TokenBatch
    ) -> NDArray[np.float32]:
        request = self._idle.popleft()  # there are as many as threads
        try:
            return run(request, batch)
        finally:
            self._idle.append(request)
