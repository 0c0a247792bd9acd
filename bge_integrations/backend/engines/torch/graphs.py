"""Graphs of launches for small batches, which take longer to launch than to compute."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import EngineOutOfMemory, GraphState, PendingRows, TokenBatch
from bge_integrations.backend.engines.memory import memory_errors
from bge_integrations.backend.engines.torch.encoder import Inputs, packed
from bge_integrations.backend.engines.torch.launches import Graph, Launches, Mark
from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)

# Milliseconds on one H100 in float16, measured with a prototype (small-en, base-en, large-en):
#
#   24 tokens: plain launches 2.3, 2.4, 4.5; graph 0.45, 0.56, 1.17
#   1536 tokens: plain launches 2.35, 2.5, 5.2; graph 0.97, 1.5, 3.9
#
# So launches take 0.2 ms a layer, whatever the size. The card computes for as long at some 11,000 tokens of small-en,
# 5,000 of base-en and 3,700 of large-en. From there on plain launches are hidden behind the computation, and a graph
# only adds its filling. No graph was measured above 1536 tokens, so the limit stays near it.
_MOST_TOKENS = 2048
_MOST_GRAPHS = 48
_MOST_GRAPH_BYTES = 512 << 20
_SIZES_OF_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792, _MOST_TOKENS)
_SIZES_OF_LONGEST = (16, 32, 64, 128, 256, 512, 1024, _MOST_TOKENS)
_SIZES_OF_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Of a filled batch with the batch alone, whose products another kernel may compute.
_LEAST_COSINE = 0.999
_MOST_NUMBERS = 2 * _MOST_TOKENS + _SIZES_OF_TEXTS[-1] + 1


@dataclass(frozen=True)
class Bucket:
    """The size of a graph. A batch that is smaller is filled with texts that nobody reads.

    Attributes:
        texts: Number of texts.
        tokens: Number of tokens.
        longest: Most tokens of a text.
    """

    texts: int
    tokens: int
    longest: int

    @classmethod
    def of(cls, batch: TokenBatch) -> Bucket | None:
        """Returns the smallest bucket that a batch can fill; `None` for a batch that plain launches compute faster.

        Every filling text has at least one token and at most `longest`, so that no kernel meets an empty text.
        """
        texts, tokens = len(batch.lengths), len(batch.ids)
        if tokens > _MOST_TOKENS or texts > _SIZES_OF_TEXTS[-1] or int(batch.lengths.min()) < 1:
            return None
        longest = _size(_SIZES_OF_LONGEST, int(batch.lengths.max()))
        for room in _SIZES_OF_TEXTS[bisect_left(_SIZES_OF_TEXTS, texts) :]:
            fillers = room - texts
            if tokens + fillers > _MOST_TOKENS:
                return None
            bucket = cls(room, _size(_SIZES_OF_TOKENS, tokens + fillers), longest)
            if fillers <= bucket.tokens - tokens <= fillers * longest:
                return bucket
        return None

    @property
    def numbers(self) -> int:
        """Numbers that `packed` returns for a batch of this size."""
        return 2 * self.tokens + self.texts + 1

    def filled(self, batch: TokenBatch, shape: EncoderShape) -> NDArray[np.int32]:
        """Returns what `packed` returns for a batch with its filling at the end.

        That consists of the token 0 at position 0, which are in the tables of all models.
        """
        inputs = packed(batch, shape)
        texts, tokens = len(batch.lengths), len(batch.ids)
        fillers, free = self.texts - texts, self.tokens - tokens
        filled = np.zeros(self.numbers, dtype=np.int32)
        ids, positions, ends = filled[: self.tokens], filled[self.tokens : 2 * self.tokens], filled[2 * self.tokens :]
        ids[:tokens], positions[:tokens], ends[: texts + 1] = np.split(inputs, [tokens, 2 * tokens])
        ends[texts + 1 :] = tokens + np.arange(1, fillers + 1) * free // max(fillers, 1)
        return filled


def _size(sizes: tuple[int, ...], least: int) -> int:
    return sizes[bisect_left(sizes, least)]


class GraphCache:
    """The graphs of an engine. Not thread-safe: the engine's lock is held, inside the stream of its launches.

    A bucket is captured when it is used for the second time, since many sizes come only once. The first replay is
    compared with plain launches: bit for bit for the filled batch, and by cosines for the batch alone. After a
    difference, or an error other than too little memory, plain launches compute all later batches of the engine.

    Attributes:
        is_on: Whether graphs are used.
    """

    def __init__(
        self,
        launches: Launches,
        compute: Callable[[Inputs], torch.Tensor],
        shape: EncoderShape,
        *,
        rows_are_texts: bool,
    ) -> None:
        """Prepares a cache without graphs.

        Args:
            launches: Access to the device.
            compute: Function that launches the forward pass and returns its rows, float32.
            shape: The encoder's shape.
            rows_are_texts: Whether there is one row a text, else one a token.
        """
        self.is_on = True
        self._fault: str | None = None
        self._launches = launches
        self._compute = compute
        self._shape = shape
        self._rows_are_texts = rows_are_texts
        self._graphs: OrderedDict[Bucket, Graph] = OrderedDict()
        self._gets_none: dict[Bucket, bool] = {}  # buckets in use without a graph, and whether that is final
        self._idle: list[_Staging] = []
        self._inputs = torch.empty(_MOST_NUMBERS, dtype=torch.int32, device=launches.device)

    def submit(self, batch: TokenBatch) -> PendingRows | None:
        """Queues a batch as the replay of a graph; see `Engine.submit`.

        Returns:
            The rows. `None`: nothing was queued, and plain launches must compute the batch.
        """
        bucket = Bucket.of(batch) if self.is_on else None
        if bucket is None or not (bucket in self._graphs or self._is_due(bucket)):
            return None
        try:
            with memory_errors(str(self._launches.device)):
                return self._replayed(bucket, batch)
        except EngineOutOfMemory as error:  # of pinned memory; a graph itself takes no more
            logger.info("a batch is not replayed: %s", error)
            return None

    @property
    def state(self) -> GraphState:
        """The state for `Statistics`, from any thread."""
        return GraphState(is_on=self.is_on, captured=len(self._graphs), fault=self._fault)

    def close(self) -> None:
        """Releases all graphs. Plain launches compute later batches."""
        self.is_on = False
        with contextlib.suppress(Exception):  # the device may do nothing any more
            self._release_all()

    def abandon(self) -> None:
        """Ends the use of graphs in a forked child. Nothing is freed: CUDA does not work there."""
        self.is_on = False

    def _is_due(self, bucket: Bucket) -> bool:
        """Whether a bucket without a graph gets one now."""
        if bucket in self._gets_none:
            return not self._gets_none[bucket]
        self._gets_none[bucket] = False
        return False

    def _replayed(self, bucket: Bucket, batch: TokenBatch) -> PendingRows | None:
        staging = self._idle.pop() if self._idle else _Staging(self._launches)
        staging.send(bucket.filled(batch, self._shape), self._inputs)
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._captured(bucket, batch)
            if graph is None:
                return None  # the staging is not used again: its copy may still be under way
        else:
            graph.replay()
        self._graphs.move_to_end(bucket)
        rows = graph.output[: len(batch.lengths) if self._rows_are_texts else len(batch.ids)]
        mark = staging.fetch(rows, self._launches)
        return _Replayed(staging, mark, rows.shape, self._idle, str(self._launches.device))

    def _captured(self, bucket: Bucket, batch: TokenBatch) -> Graph | None:
        """Returns a new graph that was replayed with a batch; `None` if it is not right or can't be made."""
        inputs = Inputs.of(self._inputs[: bucket.numbers], bucket.tokens, bucket.longest)
        try:
            with memory_errors(str(self._launches.device)):
                self._make_room()
                expected = self._compute(inputs)  # also compiles and allocates what can't be captured
                graph = self._launches.capture(lambda: self._compute(inputs))
                self._graphs[bucket] = graph
                graph.replay()
                self._compare(graph.output, expected, batch)
        except EngineOutOfMemory as error:
            logger.info("no graph for %s, which does not fit into memory: %s", bucket, error)
            self._gets_none[bucket] = True
            self._release(bucket)
            return None
        except Exception as error:  # drivers and kernels raise many classes of errors
            logger.warning(
                "%s: a graph for %s can't be used, so plain launches compute small batches from now on: %r",
                *(self._launches.device, bucket, error),
            )
            self._fault = f"a graph for {bucket} can't be used: {error!r}"
            self.close()
            return None
        del self._gets_none[bucket]
        logger.debug("captured a graph for %s; all graphs take %d bytes", bucket, self._launches.graph_bytes)
        return graph

    def _compare(self, found: torch.Tensor, expected: torch.Tensor, batch: TokenBatch) -> None:
        """Compares the first rows of a graph with plain launches.

        Raises:
            ArithmeticError: They differ.
        """
        if not torch.equal(found.view(torch.int32), expected.view(torch.int32)):
            raise ArithmeticError("it gives other bits than plain launches")
        numbers = torch.from_numpy(packed(batch, self._shape)).to(found.device)
        alone = self._compute(Inputs.of(numbers, len(batch.ids), int(batch.lengths.max())))
        least = float(torch.cosine_similarity(found[: len(alone)], alone).min())
        if least < _LEAST_COSINE:  # NaN is left to the caller, who names the text
            raise ArithmeticError(f"its filling changes the results: least cosine {least:.4f}")

    def _make_room(self) -> None:
        if self._launches.graph_bytes >= _MOST_GRAPH_BYTES:
            self._release_all()
        while len(self._graphs) >= _MOST_GRAPHS:
            self._release(next(iter(self._graphs)))

    def _release(self, bucket: Bucket) -> None:
        graph = self._graphs.pop(bucket, None)
        if graph is not None:
            graph.release()
        if not self._graphs:  # torch takes no further graph into a pool that its last graph has left
            self._launches.drop_pool()

    def _release_all(self) -> None:
        for bucket in list(self._graphs):
            self._release(bucket)


class _Staging:
    """Pinned memory that brings a batch to the device and its rows back. It is used again after that."""

    def __init__(self, launches: Launches) -> None:
        self._numbers = launches.pinned(_MOST_NUMBERS, torch.int32)
        self._rows = launches.pinned(0, torch.float32)

    def send(self, numbers: NDArray[np.int32], place: torch.Tensor) -> None:
        """Queues the copy of a batch to the start of a tensor on the device."""
        host = self._numbers[: len(numbers)]
        host.numpy()[:] = numbers
        place[: len(numbers)].copy_(host, non_blocking=True)

    def fetch(self, rows: torch.Tensor, launches: Launches) -> Mark:
        """Queues the copy of rows from the device. The next replay overwrites them, so it waits for the copy."""
        if len(self._rows) < rows.numel():
            self._rows = launches.pinned(1 << (rows.numel() - 1).bit_length(), torch.float32)
        return launches.fetch(rows, self._rows[: rows.numel()].view_as(rows), aside=False)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns a copy of the rows, once they are here."""
        rows: NDArray[np.float32] = self._rows[: shape[0] * shape[1]].numpy().reshape(shape).copy()
        return rows


class _Replayed:
    """The rows of a replay on their way."""

    def __init__(
        self, staging: _Staging, mark: Mark, shape: tuple[int, ...], idle: list[_Staging], device: str
    ) -> None:
        self._staging = staging
        self._mark = mark
        self._shape = shape
        self._idle = idle
        self._device = device

    def result(self) -> NDArray[np.float32]:
        """See `PendingRows.result`. It is called once."""
        with memory_errors(self._device):
            self._mark.wait()
        rows = self._staging.take(self._shape)
        self._idle.append(self._staging)
        return rows
