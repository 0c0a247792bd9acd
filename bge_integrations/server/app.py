"""The application: its routes, and what holds for all of them."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as Endpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.catalogue.instructions import Role
from bge_integrations.errors import SettingsError
from bge_integrations.server import cohere, openai, tei
from bge_integrations.server.errors import COHERE, OPENAI, TEI, Api, Refused
from bge_integrations.server.inputs import read, read_default_side
from bge_integrations.server.limits import Admission, Buffer, Limits, too_large
from bge_integrations.server.metrics import Metrics
from bge_integrations.server.models import Models
from bge_integrations.server.openapi import description, page
from bge_integrations.server.routes import Route

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.m3 import BgeM3Encoder
    from bge_integrations.reranker import BgeReranker

logger = get_logger(__name__)

Result = TypeVar("Result")

ROUTES: tuple[Route, ...] = (*openai.ROUTES, *tei.ROUTES, *cohere.ROUTES)

_OPEN = ("/health", "/ready", "/ping")
"""Paths without a key, for the probes of a cluster."""

_CLIENT_LEFT = 499
"""Status in the metrics of a request whose client did not wait for the answer."""

_AFTER_CLOSING_S = 5


class ServerApp:
    """An ASGI application that serves models.

    Attributes:
        models: The models.
        admission: The limits, and what is in progress.
        closing: Whether new requests are refused, since the server is about to stop.
    """

    def __init__(
        self,
        encoder: BgeEncoder | None = None,
        *,
        reranker: BgeReranker | None = None,
        m3: BgeM3Encoder | None = None,
        names: Sequence[str] = (),
        api_key: str | None = None,
        default_input_type: Role = "document",
        truncate: bool = True,
        limits: Limits | None = None,
    ) -> None:
        """Shares the models of the given objects.

        Args:
            encoder: Encoder for vectors. Its instructions, dimensions and normalisation are the server's.
            reranker: Reranker.
            m3: bge-m3, for lexical weights. Without `encoder`, it also gives the vectors.
            names: Names of the encoder in requests, or of the reranker if there is no encoder. The first one is shown
                in answers. By default, it is the hub id, or the last part of the folder.
            api_key: Key that requests must send as `Authorization: Bearer …`. `None`: no key.
            default_input_type: Side of texts for which a request names none: `"query"`, `"document"` or `"symmetric"`.
            truncate: Whether texts over the limit are cut if a request does not say. Otherwise they are refused.
            limits: Limits; `None`: the default ones.

        Raises:
            SettingsError: There is no model, or the key is empty.
            MissingExtraError: The extra `serve` is not installed.
        """
        if api_key is not None and not api_key.strip():
            raise SettingsError("api_key is empty, so every request would pass; give a key, or None for no key.")
        self.closing = False
        self.admission = Admission(limits or Limits())
        self._metrics = Metrics(self.admission)
        self.models = Models(
            encoder,
            reranker,
            m3,
            names=names,
            default_side=read_default_side(default_input_type),
            truncates=truncate,
            admission=self.admission,
            metrics=self._metrics,
        )
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._apis: dict[str, Api] = {route.path: route.api for route in ROUTES}
        pages = self._pages()
        self._paths = {*self._apis, *pages}
        self._router = self._make_router(pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        path: str = scope["path"]
        label, start = path if path in self._paths else "other", time.perf_counter()
        status = _CLIENT_LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._require_key(scope)
                if path in _OPEN:
                    await self._router(scope, receive, counted)
                else:
                    self._require_open()
                    with self.admission.request():
                        await self._router(scope, receive, counted)
            except Refused as refused:
                await self._refusal(path, refused)(scope, receive, counted)
        finally:
            self._metrics.requests.labels(label, status).inc()
            self._metrics.seconds.labels(label).observe(time.perf_counter() - start)

    def _pages(self) -> dict[str, Callable[[], Response]]:
        return {
            "/": lambda: _json({"status": "ok"}),
            "/ping": lambda: _json({"status": "ok"}),
            "/health": lambda: _json({"status": "ok"}),
            "/ready": self._ready,
            "/info": lambda: _json(self.models.info()),
            "/v1/models": lambda: _json(openai.listed(self.models)),
            "/metrics": self._numbers,
            "/openapi.json": lambda: _json(description(ROUTES)),
            "/docs": lambda: HTMLResponse(page(ROUTES)),
        }

    def _make_router(self, pages: Mapping[str, Callable[[], Response]]) -> ASGIApp:
        posts = [Endpoint(route.path, self._endpoint(route), methods=["POST"]) for route in ROUTES]
        gets = [Endpoint(path, _page(make), methods=["GET"]) for path, make in pages.items()]
        handlers = {HTTPException: self._unknown, Refused: self._refused, ClientDisconnect: _left}
        return Starlette(routes=[*posts, *gets], exception_handlers=handlers)  # type: ignore[arg-type]

    def _endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                with self.admission.buffer() as buffer:
                    asked = read(route.body, _parsed(await self._body(request, buffer)))
                    answer = await _unless_left(request, route.answer(self.models, asked))
                return _json(answer.content, headers=dict(answer.headers))
            except (Refused, ClientDisconnect):
                raise
            except Exception as error:
                _log(error)
                raise Refused("failed", "The server failed.") from None

        return endpoint

    async def _body(self, request: Request, buffer: Buffer) -> bytes:
        limits = self.admission.limits
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > limits.max_body_bytes:
            raise too_large(limits)

        async def whole() -> bytes:
            parts = []
            async for part in request.stream():
                buffer.add(len(part))
                parts.append(part)
            return b"".join(parts)

        try:
            return await asyncio.wait_for(whole(), limits.body_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused("too_slow", f"The body did not arrive within {limits.body_seconds:g} seconds.") from None

    def _require_key(self, scope: Scope) -> None:
        if self._authorization is None or scope["path"] in _OPEN:
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._authorization):
            raise Refused("unauthorized", "The key is missing or wrong. Send it as 'Authorization: Bearer KEY'.")

    def _require_open(self) -> None:
        if self.closing:
            raise Refused("closing", "The server is about to stop.", retry_after=_AFTER_CLOSING_S)

    def _ready(self) -> Response:
        self._require_open()
        return _json({"status": "ready"})

    def _numbers(self) -> Response:
        text, content_type = self._metrics.text()
        return Response(text, media_type=content_type)

    def _refused(self, request: Request, refused: Refused) -> Response:
        return self._refusal(request.url.path, refused)

    def _unknown(self, request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            message = "This path takes another method. GET /docs lists all paths."
        else:
            message = "There is no such path. GET /docs lists all paths."
        return self._refusal(request.url.path, Refused("not_found", message, status=error.status_code))

    def _refusal(self, path: str, refused: Refused) -> Response:
        api = self._apis.get(path) or (
            OPENAI if path.startswith("/v1/") else COHERE if path.startswith("/v2/") else TEI
        )
        return _json(api.body(refused), status=api.status(refused), headers=refused.headers())


create_app = ServerApp


def _left(_: Request, __: Exception) -> Response:
    """Returns what a client would get that does not wait for it."""
    return Response(status_code=_CLIENT_LEFT)


def _page(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return make()

    return endpoint


def _json(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(text, status_code=status, headers=headers, media_type="application/json")


def _parsed(body: bytes) -> object:
    """Returns the content of a body.

    Raises:
        Refused: It is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f" ({error.msg} at character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused("invalid", f"The body is not JSON in UTF-8{where}.", status=400) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


async def _unless_left(request: Request, work: Awaitable[Result]) -> Result:
    """Waits for work, and cancels it if the client leaves. Its texts that are still queued are dropped.

    Raises:
        ClientDisconnect: The client has left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            # It ends before the counts of what is in progress are given back.
            await asyncio.wait({working})


def _log(error: Exception) -> None:
    """Logs an unexpected error with its place in the code, without its message, which may hold a text."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed unexpectedly: %s\n%s", type(error).__name__, where)
