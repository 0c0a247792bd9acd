"""The process of a server: its socket, its connections, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import SettingsError

if TYPE_CHECKING:
    # The parent of what uvicorn chooses; both of its classes have the same attributes.
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

    from bge_integrations.server.app import ServerApp
else:
    Protocol = AutoHTTPProtocol

logger = get_logger(__name__)

_BACKLOG = 2048
_OPEN_FILES = 65536
_HEADER_BYTES = 65536

_KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection, so that no request meets a connection that is being closed."""


def serve(
    app: ServerApp,
    listener: socket.socket,
    *,
    drain_seconds: float = 30.0,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serves an application until the process gets SIGTERM or SIGINT.

    Then new requests get 503, and those in progress are finished. A second signal ends them too.

    Args:
        app: The application.
        listener: A bound socket, such as `bound` gives.
        drain_seconds: Greatest time in seconds for requests in progress.
        on_start: Function that is called when requests are taken.
    """
    _allow_many_connections()
    config = uvicorn.Config(
        app,
        http=type("_Guarded", (_Guarded,), {"seconds": app.admission.limits.body_seconds}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        backlog=_BACKLOG,
    )
    _Server(config, app, drain_seconds, on_start).run(sockets=[listener])


@contextmanager
def bound(host: str, port: int, uds: str | None = None) -> Iterator[tuple[socket.socket, str]]:
    """A block with a bound socket, which does not listen yet.

    Args:
        host: Name or address of an interface.
        port: Port; 0: any free one.
        uds: Path of a Unix socket instead. It gets the permissions that the umask leaves, and is removed at the end.

    Yields:
        The socket, and its address in words.

    Raises:
        SettingsError: The address can't be used.
    """
    if uds is not None:
        with _unix_socket(Path(uds).expanduser()) as listener:
            yield listener, f"unix:{uds}"
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"host={host!r} can't be used: {error.strerror}.") from error
    with listener:
        if os.name == "posix":  # elsewhere two processes could take one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise SettingsError(
                f"host={host!r} with port={port} can't be used: {error.strerror}. Choose another port, or 0 for any."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        yield listener, f"http://{shown}:{listener.getsockname()[1]}"


def is_local(listener: socket.socket) -> bool:
    """Whether only processes of this machine reach a bound socket."""
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _allow_many_connections() -> None:
    """Raises the process's limit for open files, of which each connection takes one, as far as it may."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        raise SettingsError("uds is given, but Python has no Unix sockets on this system; use host and port.")
    _remove_abandoned(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise SettingsError(f"uds={str(path)!r} can't be used: {error.strerror or error}.") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Removes a socket that no process listens on."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"uds={str(path)!r} is there already, and it is not a socket; choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise SettingsError(f"uds={str(path)!r} is in use by another process; choose another path.")
    with suppress(OSError):
        path.unlink()


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal on, and ends when those in progress are finished."""

    def __init__(
        self, config: uvicorn.Config, app: ServerApp, drain_seconds: float, on_start: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._app = app
        self._drain_seconds = drain_seconds
        self._drain_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self._app.closing:
            self.should_exit = self.force_exit = True
        self._app.closing = True

    async def on_tick(self, counter: int) -> bool:
        if self._app.closing and not self.should_exit:
            now = asyncio.get_running_loop().time()
            if self._drain_until is None:
                self._drain_until = now + self._drain_seconds
            if not self._app.admission.requests or now >= self._drain_until:
                self.should_exit = True
        return await super().on_tick(counter)


class _Guarded(Protocol):
    """uvicorn's protocol, with limits for what it waits for without one.

    It waits for ever for a client that never ends its headers, and for one that reads nothing of its answer. One of its
    two parsers takes headers of any size.
    """

    seconds = 60.0
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _unsent = 0
    _in_headers = False
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()
        self._header_bytes += len(data)
        if self._in_headers and self._header_bytes > _HEADER_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Called by httptools. The other parser, h11, has a limit for headers."""
        self._in_headers, self._header_bytes = True, 0
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._in_headers = False
        super().on_headers_complete()  # type: ignore[misc]

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _expect_reading(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(self.seconds, self._check_reading)

    def _check_reading(self) -> None:
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._expect_reading()
