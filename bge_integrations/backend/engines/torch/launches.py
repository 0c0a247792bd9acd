"""How work reaches a GPU: streams, pinned memory, events, and graphs of launches. `graphs` and `engine` decide what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from bge_integrations.backend.guarantees.forks import ForkSafeLock

# torch allows one capture at a time in a process.
_capturing = ForkSafeLock()


class Mark(Protocol):
    """A place in the queue of a device."""

    def wait(self) -> None:
        """Waits until the device has done what was queued before this place. Other threads run meanwhile."""
        ...


class Graph(Protocol):
    """Launches that were recorded once and are repeated by one call, on the same memory.

    Attributes:
        output: The result. Every replay overwrites it.
    """

    output: torch.Tensor

    def replay(self) -> None:
        """Queues all launches."""
        ...

    def release(self) -> None:
        """Frees the graph after what is queued is done."""
        ...


class Launches(Protocol):
    """Access to a device. What is queued inside `stream` is computed in its order.

    Attributes:
        device: The device.
    """

    device: torch.device

    def stream(self) -> AbstractContextManager[object]:
        """A block whose work is queued on the engine's own stream."""
        ...

    def pinned(self, numbers: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns host memory from which and to which the device copies by itself, shape [numbers]."""
        ...

    def fetch(self, rows: torch.Tensor, host: torch.Tensor, *, aside: bool) -> Mark:
        """Queues a copy of rows into pinned memory.

        Args:
            rows: The rows on the device.
            host: The place for them.
            aside: Whether work that is queued later need not wait for the copy. Then nothing may overwrite `rows`.

        Returns:
            The end of the copy.
        """
        ...

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Records the launches of some work, which must have run before. All graphs share one pool of memory."""
        ...

    @property
    def graph_bytes(self) -> int:
        """Device memory that the pool of the graphs has taken so far."""
        ...

    def drop_pool(self) -> None:
        """Gives back the memory of all graphs, which must be released. Later graphs take a new pool."""
        ...


class CudaLaunches:
    """Launches by torch.cuda."""

    def __init__(self, device: torch.device) -> None:
        """Makes the streams of an engine. Work that is queued on the device so far is done before theirs."""
        self.device = device
        self._compute = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copy = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute.wait_stream(torch.cuda.current_stream(device))
        self.drop_pool()

    def drop_pool(self) -> None:
        """See `Launches.drop_pool`."""
        self._pool = torch.cuda.graph_pool_handle()
        self.graph_bytes = 0

    def stream(self) -> AbstractContextManager[object]:
        """See `Launches.stream`."""
        return torch.cuda.stream(self._compute)

    def pinned(self, numbers: int, dtype: torch.dtype) -> torch.Tensor:
        """See `Launches.pinned`."""
        return torch.empty(numbers, dtype=dtype, pin_memory=True)

    def fetch(self, rows: torch.Tensor, host: torch.Tensor, *, aside: bool) -> Mark:
        """See `Launches.fetch`."""
        queue = self._copy if aside else self._compute
        if aside:
            queue.wait_stream(self._compute)
            rows.record_stream(queue)
        with torch.cuda.stream(queue):
            host.copy_(rows, non_blocking=True)
        return _Event(queue, is_long=aside)

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """See `Launches.capture`."""
        graph, stream = torch.cuda.CUDAGraph(), self._compute
        with _capturing:
            try:
                # In other modes, an allocation of another thread would end the capture with an error.
                with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                    before = torch.cuda.memory_reserved(self.device)
                    output = work()
            except Exception as error:
                self._end_allocations()
                # The end of a capture that has failed raises an error of its own.
                raise error.__context__ or error from None
            self.graph_bytes += max(torch.cuda.memory_reserved(self.device) - before, 0)
        return _CudaGraph(graph, output, stream)

    def _end_allocations(self) -> None:
        """Tells torch's allocator that a capture is over, which a capture whose end fails does not.

        Until then the allocator keeps all memory that two streams have used, and empties no cache.
        """
        with contextlib.suppress(Exception):  # the capture did it itself
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
            torch._C._cuda_releasePool(self.device.index, self._pool)


class _Event:
    def __init__(self, stream: torch.cuda.Stream, *, is_long: bool) -> None:
        # A short wait keeps a core busy, which saves the time to wake up. A long one leaves the core to tokenizing.
        self._event = torch.cuda.Event(blocking=is_long)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        """See `Mark.wait`."""
        self._event.synchronize()


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self.output = output
        self._graph = graph
        self._stream = stream

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()

    def release(self) -> None:
        """See `Graph.release`."""
        self._stream.synchronize()
        self._graph.reset()
