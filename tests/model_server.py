"""A server for tests: it computes with an encoder of this process, counts, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.scheduler import Scheduler
from bge_integrations.backend.scheduler.job import PRIORITIES

LONG = 60.0

Api = Literal["tei", "openai", "infinity"]


@dataclass
class Reply:
    """An answer that the script gives in place of the right one.

    Attributes:
        status: HTTP status.
        body: Bytes, or what becomes JSON.
        headers: Headers.
        closes: Whether the connection is closed without an answer.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False


Script = Callable[[str, Any], Reply | None]
"""Takes the path and the JSON of a request. `None`: the right answer."""


@dataclass
class Models:
    """The models that compute the right answers. They add no instruction: the client does."""

    encoder: BgeEncoder | None = None
    reranker: BgeReranker | None = None
    m3: BgeM3Encoder | None = None

    def vectors(self, texts: list[str]) -> list[list[float]]:
        if self.encoder is not None:
            return [[float(number) for number in row] for row in self.encoder.encode(texts)]
        assert self.m3 is not None
        dense = self.m3.encode_documents(texts, sparse=False, colbert=False).dense
        assert dense is not None
        return [[float(number) for number in row] for row in dense]

    def logits(self, query: str, passages: list[str]) -> list[float]:
        assert self.reranker is not None
        return [float(score) for score in self.reranker.score(query, passages)]

    def weights(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        assert self.m3 is not None
        found = self.m3.encode_documents(texts, dense=False, colbert=False).sparse or []
        return [[{"index": id_, "value": weight} for id_, weight in row.items()] for row in found]


class ModelServer:
    """A server on a free port of this machine.

    Attributes:
        requests: Paths and contents of all requests with a body, in order.
        headers: The headers of each of them.
        script: Chooses wrong answers.
        info: The answer of `/info`; `None`: there is no such route.
        may_go: Cleared, it keeps all answers waiting.
        entered: Released once a request has come.
        at_once: Greatest number of requests at the same time.
    """

    def __init__(self, models: Models, *, api: Api = "tei", info: Mapping[str, Any] | None = None) -> None:
        self.models, self.api = models, api
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: Script = lambda path, content: None
        self.info = {"model_id": "a model", **(info or {})} if api == "tei" else None
        self.may_go = threading.Event()
        self.may_go.set()
        self.entered = threading.Semaphore(0)
        self.at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                known = {"/v1/models": {"data": [{"id": "served"}]}, "/info": server.info}
                found = known.get(self.path)
                self._send(server.script(self.path, None) or (Reply(404) if found is None else Reply(body=found)))

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append((self.path, content))
                    server.headers.append(dict(self.headers))
                    server._now += 1
                    server.at_once = max(server.at_once, server._now)
                server.entered.release()
                try:
                    assert server.may_go.wait(LONG)
                    reply = server.script(self.path, content) or server._right(self.path, content)
                finally:
                    with server._lock:
                        server._now -= 1
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                if reply.closes:
                    self.close_connection = True
                    self.connection.close()
                    return
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def texts(self) -> list[str]:
        """The texts of all requests for vectors or weights, in order."""
        return [text for _, content in self.requests for text in content.get("inputs", content.get("input", []))]

    def sizes(self) -> list[int]:
        return [len(content.get("inputs", content.get("input", []))) for _, content in self.requests]

    def forget(self) -> None:
        self.requests.clear()
        self.headers.clear()
        self.at_once = 0

    def close(self) -> None:
        self.may_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LONG)

    def _right(self, path: str, content: Any) -> Reply:  # noqa: ANN401 - JSON
        answers: dict[str, Callable[[], Any]] = {}
        if self.api == "tei":
            answers = {
                "/embed": lambda: self.models.vectors(content["inputs"]),
                "/embed_sparse": lambda: self.models.weights(content["inputs"]),
                "/rerank": lambda: self._sorted("score", self.models.logits(content["query"], content["texts"])),
            }
        else:
            prefix = "/v1" if self.api == "openai" else ""
            answers = {
                f"{prefix}/embeddings": lambda: self._data(content["input"]),
                f"{prefix}/rerank": lambda: self._results(content["query"], content["documents"]),
            }
        compute = answers.get(path)
        return Reply(404, {"detail": "Not Found"}) if compute is None else Reply(body=compute())

    def _data(self, texts: list[str]) -> dict[str, Any]:
        rows = [
            {"object": "embedding", "index": place, "embedding": row}
            for place, row in enumerate(self.models.vectors(texts))
        ]
        return {"data": rows[::-1], "usage": {"prompt_tokens": 7}}  # the order says nothing, the index does

    def _results(self, query: str, passages: list[str]) -> dict[str, Any]:
        logits = np.array(self.models.logits(query, passages), dtype=np.float64)
        return {"results": self._sorted("relevance_score", (1 / (1 + np.exp(-logits))).tolist())}

    def _sorted(self, name: str, values: list[float]) -> list[dict[str, Any]]:
        rows = [{"index": place, name: value} for place, value in enumerate(values)]
        return sorted(rows, key=lambda row: -float(row[name]))


@contextmanager
def running(models: Models, **more: Any) -> Iterator[ModelServer]:  # noqa: ANN401 - as `ModelServer`
    server = ModelServer(models, **more)
    try:
        yield server
    finally:
        server.close()


def wait_until_idle(scheduler: Scheduler) -> None:
    """Waits until no text is in flight: a cancelled call gives its texts up in another thread."""
    wait_until(lambda: not any(map(scheduler.texts_in_flight, PRIORITIES)))


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until, "it never happens"
        time.sleep(0.002)
