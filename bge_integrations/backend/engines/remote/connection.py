"""Sends JSON to a server and reads its answer. Requests that another try can help are sent again."""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from bge_integrations.backend.engines.interface import TextsRefused
from bge_integrations.backend.guarantees.forks import ForkSafeLock
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import EndpointError, ModelClosedError, SettingsError
from bge_integrations.redaction import HIDDEN
from bge_integrations.settings import EndpointOptions

if TYPE_CHECKING:
    import httpx

logger = get_logger(__name__)

_BUSY = frozenset({429, 502, 503, 504})
"""A proxy or a server gives these while it can't answer. It has computed nothing, or the result is lost."""
_ABOUT_TEXTS = frozenset({400, 413, 422, 424})
"""With 424, text-embeddings-inference says that the model fails on a request."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0
_LONGEST_CONNECTING_S = 10.0
_QUOTED = 300
"""Characters of an answer in a message."""


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Attributes:
        status: HTTP status.
        content: The body.
        content_type: The header of this name; `""` without it.
        headers: All headers, by names in lower case.
    """

    status: int
    content: bytes
    content_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Failure:
    """A try without an answer, or with one that another try may improve.

    Attributes:
        error: The error to raise if there are no more tries.
        wait: Seconds to wait at least before the next try. `None`: another try does not help.
    """

    error: EndpointError
    wait: float | None


class Connection:
    """A server's address, with a pool of connections to it. Thread-safe."""

    def __init__(self, address: str, options: EndpointOptions, key: str | None) -> None:
        """Describes the connection. The first request opens it.

        Args:
            address: The server's address.
            options: The user's options.
            key: The server's key; `None` if it needs none.

        Raises:
            SettingsError: The file of certificates can't be read.
        """
        self.address = address
        self._options = options
        self._key = key
        self._verify = _verification(options.verify)
        self._lock = ForkSafeLock()
        self._client: httpx.Client | None = None
        self._process = os.getpid()
        self._stopped = threading.Event()

    def post(self, path: str, content: Mapping[str, Any]) -> tuple[Any, Answer]:
        """Sends JSON and returns the JSON of the answer, with the answer itself.

        Raises:
            TextsRefused: The server refuses the content.
            EndpointError: No answer, another refusal, or an answer that is not JSON.
            ModelClosedError: `stop` was called meanwhile.
        """
        answer = self._answer("POST", path, json.dumps(content, ensure_ascii=False).encode())
        if answer.status in _ABOUT_TEXTS:
            raise TextsRefused(self._refusal(path, answer), answer.status)
        return self._json(path, answer), answer

    def look(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Returns the JSON at a path; `None` if there is nothing, or no JSON.

        Raises:
            EndpointError: No answer, or the server refuses the key.
        """
        answer = self._answer("GET", path, None)
        if answer.status in (401, 403):
            raise self._refused(path, answer)
        try:
            return json.loads(answer.content) if answer.status == HTTPStatus.OK else None
        except ValueError:
            return None

    def stop(self) -> None:
        """Ends all waits before further tries."""
        self._stopped.set()

    def forget(self) -> None:
        """Forgets the open connections in a forked child: they are the parent's."""
        self._client = None

    def close(self) -> None:
        """Closes all connections of this process."""
        self.stop()
        client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            client.close()

    def hidden(self, text: str) -> str:
        """Returns a text without the key."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _answer(self, method: str, path: str, content: bytes | None) -> Answer:
        started, tries = time.monotonic(), 0
        while True:
            tries += 1
            outcome = self._try(method, path, content)
            if isinstance(outcome, Answer):
                return outcome
            wait, spent = _wait(outcome, tries), time.monotonic() - started
            if wait is None:
                raise outcome.error
            if tries > self._options.retries or spent + wait > self._options.retry_seconds:
                raise EndpointError(
                    f"{outcome.error} It was tried {tries} time(s) in {spent:.1f} s; endpoint_options['retries'] and "
                    "['retry_seconds'] are the limits.",
                    status=outcome.error.status,
                )
            logger.info("%s%s: trying again in %.1f s: %s", self.address, path, wait, outcome.error)
            if self._stopped.wait(wait):
                raise ModelClosedError(f"The model at {self.address} was closed while it was tried again.")

    def _try(self, method: str, path: str, content: bytes | None) -> Answer | _Failure:
        import httpx

        try:
            response = self._opened().request(method, f"{self.address}{path}", content=content)
            answer = Answer(
                response.status_code,
                response.content,
                response.headers.get("content-type", ""),
                {name.lower(): value for name, value in response.headers.items()},
            )
        except httpx.HTTPError as error:
            failure = self._no_answer(path, error)
        except (httpx.InvalidURL, ValueError) as error:  # a wrong proxy in the environment
            failure = _Failure(EndpointError(f"{self.address} can't be asked: {self.hidden(str(error))}."), None)
        else:
            return self._judged(path, answer)
        # Outside of `except`: the original error refers to the request, whose headers hold the key.
        return failure

    def _judged(self, path: str, answer: Answer) -> Answer | _Failure:
        if answer.status in _BUSY:
            said = _seconds(answer.headers.get("retry-after"))
            return _Failure(self._refused(path, answer), said or 0.0)
        return answer

    def _json(self, path: str, answer: Answer) -> Any:  # noqa: ANN401 - JSON
        if answer.status != HTTPStatus.OK:
            raise self._refused(path, answer)
        try:
            return json.loads(answer.content)
        except ValueError:
            pass
        raise EndpointError(
            f"{self.address}{path} gave no JSON but {answer.content_type or 'an unknown type'}: "
            f"{self._quoted(answer)}. Check that the address is the model server's.",
            status=answer.status,
        )

    def _refused(self, path: str, answer: Answer) -> EndpointError:
        return EndpointError(self._refusal(path, answer), status=answer.status)

    def _refusal(self, path: str, answer: Answer) -> str:
        """Returns what a status means and what to do, for messages."""
        status = answer.status
        said = f"{self.address}{path} answers {status}{_phrase(status)}: {self._quoted(answer)}."
        if status in (401, 403):
            if self._key is None:
                return f"{said} Give the server's key as api_key, or its variable as endpoint_options['api_key_env']."
            return f"{said} Check the key and endpoint_options['key_header'] ({self._options.key_header})."
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            to = self.hidden(answer.headers.get("location", "an unknown place"))
            return f"{said} It redirects to {to}, which is not followed; give the final address as endpoint."
        if status == HTTPStatus.NOT_FOUND:
            return f"{said} Check the path of endpoint, endpoint_options['api'] and endpoint_options['model']."
        return said

    def _quoted(self, answer: Answer) -> str:
        text = self.hidden(answer.content[:2000].decode("utf-8", "replace")).strip()
        return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…") if text else "no text"

    def _no_answer(self, path: str, error: httpx.HTTPError) -> _Failure:
        import httpx

        where, reason = f"{self.address}{path}", self.hidden(str(error)) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            return _Failure(EndpointError(f"{where} can't be reached in time: {reason}."), 0.0)
        if isinstance(error, httpx.TimeoutException):
            return _Failure(
                EndpointError(
                    f"{where} gave no answer within {self._options.timeout:g} s; set endpoint_options['timeout'] "
                    "higher, or batch_tokens lower."
                ),
                None,
            )
        if _is_from_tls(error):
            return _Failure(
                EndpointError(
                    f"{where} has no certificate that can be trusted: {reason}. Give the file of the authority's "
                    "certificate as endpoint_options['verify']."
                ),
                None,
            )
        if isinstance(error, httpx.ConnectError):
            unknown = "Name or service" in reason or "getaddrinfo" in reason or "nodename" in reason
            helps = None if unknown else 0.0
            return _Failure(
                EndpointError(f"{where} can't be reached: {reason}. Check that the server runs at this address."), helps
            )
        if isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.CloseError)):
            return _Failure(EndpointError(f"{where} closed the connection before its answer: {reason}."), 0.0)
        return _Failure(EndpointError(f"{where} can't be asked: {reason}."), None)

    def _opened(self) -> httpx.Client:
        client = self._client
        if client is None:
            with self._lock:
                self._process = os.getpid()
                client = self._client = self._client or self._new_client()
        return client

    def _new_client(self) -> httpx.Client:
        import httpx

        options = self._options
        headers = {"Accept": "application/json", "Content-Type": "application/json", **dict(options.headers)}
        if self._key is not None:
            bearer = options.key_header.lower() == "authorization"
            headers[options.key_header] = f"Bearer {self._key}" if bearer else self._key
        return httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(options.timeout, connect=min(options.timeout, _LONGEST_CONNECTING_S)),
            limits=httpx.Limits(max_connections=options.connections, max_keepalive_connections=options.connections),
            verify=_usual_certificates() if self._verify is True else self._verify,
            follow_redirects=False,
        )


@cache
def _usual_certificates() -> ssl.SSLContext:
    """Returns httpx's own certificates. Reading them takes some tens of milliseconds."""
    import httpx

    return httpx.create_ssl_context()


def _verification(verify: bool | str) -> bool | ssl.SSLContext:
    if isinstance(verify, bool):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise SettingsError(f"endpoint_options['verify']={verify!r} is no file of certificates: {error}.") from error


def _wait(failure: _Failure, tries: int, uniform: Callable[[float, float], float] = random.uniform) -> float | None:
    """Returns the seconds before the next try, with a random part, so that many clients do not come back at once."""
    if failure.wait is None:
        return None
    return failure.wait + uniform(0, min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S))


def _seconds(retry_after: str | None) -> float | None:
    """Returns the seconds in a header `Retry-After`, which are a number or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max((aware - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _phrase(status: int) -> str:
    return f" ({HTTPStatus(status).phrase})" if status in HTTPStatus._value2member_map_ else ""


def _is_from_tls(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "SSL" in str(error)
