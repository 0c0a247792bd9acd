"""A GPU for tests on the CPU: a replay runs the captured function again. The attention kernel is plain torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from bge_integrations.backend.engines.torch.launches import Graph, Mark


class EagerLaunches:
    """Stands in for `CudaLaunches`.

    Attributes:
        captured: All graphs so far.
        fetched: Number of copies from the device, aside and in line.
        trouble: Called in every capture; may raise.
        spoil: Changes what a graph gives.
        growth: Bytes that a capture takes.
        pools: Number of pools so far.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.captured: list[EagerGraph] = []
        self.fetched = {True: 0, False: 0}
        self.trouble: Callable[[], None] = lambda: None
        self.spoil: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows
        self.growth = 1000
        self.graph_bytes = 0
        self.pools = 1

    @property
    def alive(self) -> list[EagerGraph]:
        """The graphs that were not released."""
        return [graph for graph in self.captured if not graph.is_released]

    def stream(self) -> AbstractContextManager[object]:
        """See `Launches.stream`."""
        return nullcontext()

    def pinned(self, numbers: int, dtype: torch.dtype) -> torch.Tensor:
        """See `Launches.pinned`."""
        return torch.empty(numbers, dtype=dtype)

    def fetch(self, rows: torch.Tensor, host: torch.Tensor, *, aside: bool) -> Mark:
        """See `Launches.fetch`."""
        self.fetched[aside] += 1
        host.copy_(rows)
        return _Passed()

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """See `Launches.capture`."""
        self.trouble()
        self.graph_bytes += self.growth
        graph = EagerGraph(lambda: self.spoil(work()))
        self.captured.append(graph)
        return graph

    def drop_pool(self) -> None:
        """See `Launches.drop_pool`."""
        assert not self.alive
        self.pools += 1
        self.graph_bytes = 0


class EagerGraph:
    """See `Graph`. Its output is undefined before the first replay."""

    def __init__(self, work: Callable[[], torch.Tensor]) -> None:
        self._work = work
        with torch.inference_mode():
            self.output = torch.full_like(work(), float("nan"))
        self.replays = 0
        self.is_released = False

    def replay(self) -> None:
        """See `Graph.replay`."""
        assert not self.is_released
        self.replays += 1
        with torch.inference_mode():
            self.output.copy_(self._work())

    def release(self) -> None:
        """See `Graph.release`."""
        assert not self.is_released
        self.is_released = True


class _Passed:
    def wait(self) -> None:
        """See `Mark.wait`."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    ends: torch.Tensor,
    longest_query: int,
    longest: int,
) -> torch.Tensor:
    """Does what `torch.nn.attention.varlen.varlen_attn` does, text by text."""
    contexts = []
    for text in range(len(ends) - 1):
        own, others = slice(*query_ends[text : text + 2].tolist()), slice(*ends[text : text + 2].tolist())
        assert 0 < own.stop - own.start <= longest_query
        assert 0 < others.stop - others.start <= longest
        scores = torch.einsum("qhd,khd->hqk", query[own], key[others]) * query.shape[-1] ** -0.5
        contexts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[others]))
    assert len(query) == int(query_ends[-1])
    assert len(key) == int(ends[-1])
    return torch.cat(contexts)
