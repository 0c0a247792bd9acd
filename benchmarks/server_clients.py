"""Good and hostile clients of an HTTP server. They cost little, since they share the cores with the server."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["query", "documents", "scores"]

_HOST = "127.0.0.1"
_TOLERANCE = 1e-3
_PATIENCE_S = 600.0
_PAUSE_S = 0.02


@dataclass(frozen=True, eq=False)
class Question:
    """A request, and what its answer must be.

    Attributes:
        request: The bytes of the request.
        expected: Vectors of shape [texts, dimension], or scores of shape [texts].
    """

    request: bytes
    expected: NDArray[np.float32]


def asked(path: str, body: Mapping[str, object], expected: NDArray[np.float32]) -> Question:
    """Makes a question. Vectors come in base64."""
    if "input" in body:
        body = {**body, "encoding_format": "base64"}
    return Question(post(path, json.dumps(body).encode()), expected)


def post(path: str, content: bytes, length: int | None = None) -> bytes:
    """Returns the bytes of a request, which may announce another length than it has."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
    ).encode() + content


@dataclass
class Tally:
    """What good clients got.

    Attributes:
        right: Right answers.
        texts: Texts in them.
        wrong: Wrong answers, also with an error as their status.
        lost: Connections that ended without an answer.
        busy: Answers with 429, after which the client waited.
        difference: The greatest difference to what was expected.
        seconds: How long each answer took.
    """

    right: int = 0
    texts: int = 0
    wrong: int = 0
    lost: int = 0
    busy: int = 0
    difference: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def judge(self, question: Question, status: int, content: bytes) -> None:
        """Counts an answer."""
        found = read_answer(content) if status == 200 else None
        if found is None or found.shape != question.expected.shape:
            self.wrong += 1
            return
        difference = float(np.abs(found - question.expected).max())
        self.difference = max(self.difference, difference)
        if difference > _TOLERANCE:
            self.wrong += 1
        else:
            self.right += 1
            self.texts += len(found)


def read_answer(content: bytes) -> NDArray[np.float32]:
    """Returns the vectors, or the scores in the order of the texts."""
    answer = json.loads(content)
    if isinstance(answer, dict):
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
    scores = {row["index"]: row["score"] for row in answer}
    return np.array([scores[place] for place in range(len(scores))], dtype=np.float32)


class Connection:
    """A connection that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes over the two ends."""
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """Waits for an answer, and returns its status and its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        return int(head.split(" ", 2)[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A block with a connection, which is dropped at the end."""
    connection = Connection(*await asyncio.open_connection(_HOST, port))
    try:
        yield connection
    finally:
        connection.writer.transport.abort()


class Good:
    """A client that asks, waits, and checks what it gets."""

    def __init__(
        self, port: int, questions: Mapping[Any, Sequence[Question]], tallies: Mapping[Any, Tally], seed: int = 0
    ) -> None:
        """Prepares a client with its own order of questions."""
        self._port = port
        self._questions = questions
        self._tallies = tallies
        self._random = random.Random(seed)

    async def run(self, until: float) -> None:
        """Asks until a moment of the monotonic clock. Its last answer is waited for."""
        while time.monotonic() < until:
            async with connected(self._port) as connection:
                while time.monotonic() < until and await self._once(connection):
                    pass

    async def _once(self, connection: Connection) -> bool:
        """Asks once. Returns whether the connection can be used again."""
        kind = self._random.choice(list(self._questions))
        question, tally = self._random.choice(self._questions[kind]), self._tallies[kind]
        start = time.monotonic()
        try:
            connection.writer.write(question.request)
            status, content = await asyncio.wait_for(connection.answer(), _PATIENCE_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            tally.lost += 1
            return False
        if status == 429:
            tally.busy += 1
            await asyncio.sleep(1)
        else:
            tally.judge(question, status, content)
            tally.seconds.append(time.monotonic() - start)
        return True


class Hostile:
    """Clients that a server must survive.

    Attributes:
        counts: What they did, and how they were answered.
    """

    def __init__(self, port: int, request: bytes) -> None:
        """Prepares clients, some of which send a part of `request`."""
        self._port = port
        self._request = request
        self.counts: Counter[str] = Counter()

    async def slowly(self, until: float) -> None:
        """Sends a request byte by byte, and never its end."""
        while time.monotonic() < until:
            with suppress(OSError):
                async with connected(self._port) as connection:
                    self.counts["slow connections"] += 1
                    for byte in self._request[:-1]:
                        if time.monotonic() > until or connection.reader.at_eof():
                            break
                        connection.writer.write(bytes([byte]))
                        await asyncio.sleep(0.2)

    async def leaving(self, until: float, seed: int) -> None:
        """Sends requests, and leaves before the answers."""
        draws = random.Random(seed)
        while time.monotonic() < until:
            with suppress(OSError):
                async with connected(self._port) as connection:
                    connection.writer.write(self._request)
                    await asyncio.sleep(draws.uniform(0, 0.2))
                    self.counts["left in the middle"] += 1

    async def broken(self, until: float) -> None:
        """Sends what is not JSON."""
        bodies = itertools.cycle(
            (b'{"input": ', b"[" * 10_000, b'{"input": "\xff"}', b'{"input": "a", "dimensions": NaN}')
        )
        while time.monotonic() < until:
            async with connected(self._port) as connection:
                connection.writer.write(post("/v1/embeddings", next(bodies)))
                status, _ = await connection.answer()
            self.counts[f"broken JSON, answered {status}"] += 1
            await asyncio.sleep(_PAUSE_S)

    async def huge(self, count: int, size: int) -> None:
        """Sends bodies that are too large, with their length and in chunks in turns."""
        part = b"a" * 2**20
        for turn in range(count):
            with suppress(OSError, asyncio.IncompleteReadError):
                async with connected(self._port) as connection:
                    if turn % 2:
                        head = post("/embed", b"", size)
                    else:
                        head = post("/embed", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                    connection.writer.write(head)
                    for _ in range(-(-size // len(part))):
                        connection.writer.write(part if turn % 2 else b"100000\r\n" + part + b"\r\n")
                        await connection.writer.drain()
                    status, _ = await connection.answer()
                    self.counts[f"huge bodies, answered {status}"] += 1
                    continue
            self.counts["huge bodies, cut off"] += 1

    async def connections(self, count: int, at_once: int = 100) -> None:
        """Opens connections and drops them, some of them with half a request."""

        async def one(place: int) -> None:
            try:
                async with connected(self._port) as connection:
                    if place % 2:
                        connection.writer.write(self._request[: place % 40])
                    await asyncio.sleep(0)
            except OSError:
                self.counts["connections refused"] += 1
            else:
                self.counts["connections dropped"] += 1

        for start in range(0, count, at_once):
            await asyncio.gather(*(one(place) for place in range(start, min(start + at_once, count))))
            await asyncio.sleep(_PAUSE_S)
