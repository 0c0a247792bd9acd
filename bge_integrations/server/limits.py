"""The limits of a server, and the admission of requests under them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bge_integrations.errors import SettingsError
from bge_integrations.server.errors import Refused

_RATE_SECONDS = 30.0
"""The rate of finished texts is measured over this time."""

_LONGEST_WAIT_S = 60


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts. Each request over a limit is refused before the model works for it.

    Attributes:
        max_texts: Greatest number of texts of a request.
        max_characters: Greatest number of characters of a text. Models read far fewer; the rest would only be counted.
        max_body_bytes: Greatest size of a request's body.
        max_requests: Greatest number of requests at once.
        max_queued_texts: Greatest number of documents in progress, over all requests. Queries, and the pairs of
            rerankers, have a second limit of the same size. The field `priority` of a request says otherwise. A larger
            request is accepted if no other is in progress.
        max_buffered_bytes: Greatest size of all bodies in memory.
        body_seconds: Time in which the headers, and then the body, of a request must arrive. A client that reads
            nothing of its answer for this time loses its connection.
    """

    max_texts: int = 2048
    max_characters: int = 1_000_000
    max_body_bytes: int = 32 * 2**20
    max_requests: int = 512
    max_queued_texts: int = 8192
    max_buffered_bytes: int = 256 * 2**20
    body_seconds: float = 60.0

    @classmethod
    def of(cls, **given: float | None) -> Limits:
        """Returns limits of which some are given. There is room in memory for the largest body at least.

        Args:
            **given: Fields; `None`: the default.
        """
        limits = {name: value for name, value in given.items() if value is not None}
        room = max(cls.max_buffered_bytes, int(limits.get("max_body_bytes", 0)))
        return cls(**{"max_buffered_bytes": room, **limits})  # type: ignore[arg-type]  # counts are whole numbers

    def __post_init__(self) -> None:
        """Checks that all limits are above 0."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise SettingsError(f"{field.name}={value!r} must be above 0.")
        if self.max_body_bytes > self.max_buffered_bytes:
            raise SettingsError(
                f"max_body_bytes={self.max_body_bytes} is more than max_buffered_bytes={self.max_buffered_bytes}, so "
                "the largest body could never be read; raise max_buffered_bytes."
            )


class Admission:
    """Counts what is in progress, and refuses what is over a limit. It is used only in the event loop's thread.

    Attributes:
        limits: The limits.
        requests: Requests in progress.
        texts: Texts in progress, by queue: "interactive" or "bulk".
        buffered: Bytes of bodies in memory.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self.requests = 0
        self.texts: Counter[str] = Counter()
        self.buffered = 0
        self._finished: deque[tuple[float, int]] = deque()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A block in which a request is in progress.

        Raises:
            Refused: `max_requests` are in progress.
        """
        if self.requests >= self.limits.max_requests:
            raise self._overloaded(f"{self.requests} requests are in progress, which is the limit")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def queued(self, queue: str, count: int) -> Iterator[None]:
        """A block in which some texts are in progress.

        Raises:
            Refused: Too many others are in progress.
        """
        waiting = self.texts[queue]
        if waiting and waiting + count > self.limits.max_queued_texts:
            raise self._overloaded(
                f"{waiting} texts are in progress; with these {count} they would be more than the limit of "
                f"{self.limits.max_queued_texts}"
            )
        self.texts[queue] += count
        try:
            yield
            self._count(count)
        finally:
            self.texts[queue] -= count

    @contextmanager
    def buffer(self) -> Iterator[Buffer]:
        """A block in which the body of a request is in memory."""
        buffer = Buffer(self)
        try:
            yield buffer
        finally:
            self.buffered -= buffer.size

    def full(self) -> Refused:
        """Returns the refusal of a body for which there is no memory."""
        return self._overloaded("the bodies of requests fill the memory that they may take")

    def _count(self, count: int) -> None:
        now = self._clock()
        self._finished.append((now, count))
        while self._finished[0][0] < now - _RATE_SECONDS:
            self._finished.popleft()

    def _overloaded(self, what: str) -> Refused:
        return Refused("overloaded", f"The server is busy: {what}. Try again later.", retry_after=self._wait())

    def _wait(self) -> int:
        """Returns the seconds until half of the texts in progress are computed, at the rate of the last half minute."""
        since = self._clock() - _RATE_SECONDS
        finished = sum(count for moment, count in self._finished if moment >= since)
        if not finished:
            return 1
        first = max(self._finished[0][0], since)
        rate = finished / max(self._clock() - first, 1.0)
        return min(max(math.ceil(self.texts.total() / 2 / rate), 1), _LONGEST_WAIT_S)


class Buffer:
    """The memory that one body takes."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def add(self, count: int) -> None:
        """Counts further bytes.

        Raises:
            Refused: The body is too large, or all bodies are.
        """
        limits = self._admission.limits
        if self.size + count > limits.max_body_bytes:
            raise too_large(limits)
        if self._admission.buffered + count > limits.max_buffered_bytes:
            raise self._admission.full()
        self.size += count
        self._admission.buffered += count


def too_large(limits: Limits) -> Refused:
    """Returns the refusal of a body over the limit."""
    return Refused(
        "too_large",
        f"The body is larger than {limits.max_body_bytes:,} bytes, which is the limit. Send the texts in several "
        "requests.",
    )
