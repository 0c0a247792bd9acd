"""The engine that asks a server for the results of texts."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import (
    Computed,
    OutputChoice,
    Priority,
    Rows,
    ServedM3,
    TextsRefused,
    TokenBatch,
)
from bge_integrations.backend.engines.remote.connection import Connection
from bge_integrations.backend.engines.remote.routes import Routes
from bge_integrations.errors import EndpointError

_NOTHING = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)


class RemoteEngine:
    """Sends the texts of a batch to a server. Several threads may use it at once: each has a request of its own."""

    name = "remote"
    rows: Rows = "pooled"
    parallel_batches = 1

    def __init__(
        self, routes: Routes, connection: Connection, *, dimension: int, batch_tokens: int, max_texts: int
    ) -> None:
        """Takes the routes that answered a first request.

        Args:
            routes: The server's routes.
            connection: The connection of the routes.
            dimension: Length of the vectors; 1 for scores.
            batch_tokens: Best number of tokens in a request.
            max_texts: Greatest number of texts in a request.
        """
        self._routes = routes
        self._connection = connection
        self._dimension = dimension
        self.batch_tokens = batch_tokens
        self.max_texts: int | None = max_texts
        weakref.finalize(self, connection.close)

    def submit(self, batch: TokenBatch) -> Computed:
        """See `Engine.submit`. It waits for the answer.

        Raises:
            TextsRefused: The server refuses the texts.
            EndpointError: No answer, or one that can't be used.
        """
        try:
            return Computed(self._results(batch))
        except TextsRefused as error:
            # A proxy before the server may limit the size of a request. text-embeddings-inference says its own limit.
            if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(batch.written) > 1:
                self.max_texts = len(batch.written) // 2 if self._routes.api == "openai" else self.max_texts
            raise

    def abandon(self) -> None:
        """See `Engine.abandon`. The child opens connections of its own."""
        self._connection.forget()

    def stop(self) -> None:
        """Ends waits before further tries."""
        self._connection.stop()

    def _results(self, batch: TokenBatch) -> NDArray[np.float32]:
        written = batch.written
        if isinstance(batch.options, OutputChoice):
            return self._m3(cast("Sequence[str]", written), batch.options, batch.priority)
        if written and not isinstance(written[0], str):
            return self._scores(cast("Sequence[tuple[str, str]]", written))
        return self._vectors(cast("Sequence[str]", written), batch.priority)

    def _vectors(self, texts: Sequence[str], priority: Priority) -> NDArray[np.float32]:
        found = self._routes.vectors(texts, priority)
        if found.shape[1] != self._dimension:
            raise EndpointError(
                f"{self._connection.address} gives vectors of {found.shape[1]} numbers, but gave {self._dimension} "
                "before: its model was replaced. Create a new encoder."
            )
        return found

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Asks once for each distinct query."""
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(pairs):
            places.setdefault(query, []).append(place)
        found = np.empty((len(pairs), 1), dtype=np.float32)
        for query, own in places.items():
            found[own, 0] = self._routes.scores(query, [pairs[place][1] for place in own])
        return found

    def _m3(self, texts: Sequence[str], choice: OutputChoice, priority: Priority) -> NDArray[Any]:
        dense = self._vectors(texts, priority) if choice.dense else None
        sparse = self._routes.weights(texts, priority) if choice.sparse else None
        found = np.empty(len(texts), dtype=object)  # the head for bge-m3 takes objects
        for place in range(len(texts)):
            ids, weights = sparse[place] if sparse else _NOTHING[::-1]
            found[place] = ServedM3(_NOTHING[0] if dense is None else dense[place], ids, weights)
        return found
