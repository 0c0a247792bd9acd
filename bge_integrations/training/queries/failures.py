"""Failed calls: which of them pass by themselves, how long to wait, and when to give up."""

from __future__ import annotations

import asyncio
import random
import re
from asyncio import sleep
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any

from bge_integrations.errors import BgeError, ChatModelError
from bge_integrations.redaction import without_hub_tokens
from bge_integrations.training.queries.chat import Chat
from bge_integrations.training.queries.settings import QuerySettings

__all__ = ["CallFailedError", "Caller", "is_passing", "named_wait"]

_PASSING_STATUS = frozenset({408, 409, 425, 429})
_LONGEST_NAMED_S = 600.0
"""A longer wait, such as that for a daily limit, is not waited for."""
_PASSING_NAMES = re.compile(
    r"RateLimit|Timeout|TooManyRequests|ResourceExhausted|ServiceUnavailable|Overloaded|Throttl|APIConnection|"
    r"ConnectError|ReadError|RemoteProtocol|InternalServer",
)
_PASSING_WORDS = re.compile(
    r"\b(?:429|502|503|504|529)\b|rate.?limit|too many requests|timed out|overloaded|temporarily unavailable",
    re.IGNORECASE,
)
_WAIT_WORDS = re.compile(
    r"(?:try again|retry|wait)[^.\d]{0,20}?(\d+(?:\.\d+)?) ?(ms|milliseconds?|s|secs?|seconds?|m|min|minutes?)\b",
    re.IGNORECASE,
)
_SHOWN = 300
_FIRST, _LATER = 5, 25
"""Passages that fail alike, one after the other, until the run stops: at the beginning, and after a success."""
_FIRST_CALLS = 12
"""Calls that fail before any succeeds until the run stops. Rate limits do not count."""


class CallFailedError(Exception):
    """A call failed for good. The text is the failure's; `kind` is equal for failures that are alike."""

    def __init__(self, error: BaseException, attempts: int) -> None:
        status = _status(error)
        words = " ".join(without_hub_tokens(str(error)).split())
        named = type(error).__name__ + (f" (status {status})" if status else "")
        tried = "" if attempts == 1 else f", after {attempts} attempts"
        super().__init__(f"{named}{tried}: {words[:_SHOWN]}" if words else f"{named}{tried}")
        self.kind = named


class Caller:
    """Calls a chat model, waits and tries again where a failure passes, and stops a run that has no prospect."""

    def __init__(self, chat: Chat, settings: QuerySettings) -> None:
        """Takes what every call needs."""
        self._chat = chat
        self._settings = settings
        self._open_at = 0.0
        self._alike: tuple[str, int] = ("", 0)
        self._has_succeeded = False
        self._failed_calls = 0
        self.calls = 0

    async def answer(self, prompt: str) -> str:
        """Returns the answer to a prompt.

        Raises:
            CallFailedError: The calls failed.
        """
        wait = self._settings.first_wait
        for attempt in range(1, self._settings.attempts + 1):
            await self._until_open()
            self.calls += 1
            try:
                found = await asyncio.wait_for(self._chat.ask(prompt), self._settings.timeout)
            except BgeError:  # the function that was given as the model is wrong
                raise
            except Exception as error:
                if isinstance(error, (asyncio.TimeoutError, TimeoutError)) and not str(error):
                    error = TimeoutError(f"no answer in {self._settings.timeout:g} s")
                named = named_wait(error)
                is_last = attempt == self._settings.attempts or (named or 0) > _LONGEST_NAMED_S
                if is_last or not is_passing(error):
                    raise CallFailedError(error, attempt) from error
                self._note_call(error)
                drawn = min(wait, self._settings.longest_wait) * random.uniform(0.5, 1)
                wait *= 2
                pause = max(drawn, named or 0.0)
                if _is_limit(error):  # the other calls would meet the same limit
                    self._open_at = max(self._open_at, monotonic() + pause)
                else:
                    await sleep(pause)
            else:
                self._has_succeeded = True
                self._alike = ("", 0)
                return found
        raise AssertionError("attempts is 1 or more")

    def note(self, error: CallFailedError) -> None:
        """Notes that a passage failed.

        Raises:
            ChatModelError: So many have failed alike, one after the other, that the next ones would fail too.
        """
        kind, count = self._alike
        count = count + 1 if kind == error.kind else 1
        self._alike = (error.kind, count)
        if count >= (_LATER if self._has_succeeded else _FIRST):
            so_far = "" if self._has_succeeded else " and none has succeeded"
            raise self._hopeless(f"failed on {count} passages one after the other{so_far}", error) from error.__cause__

    def _note_call(self, error: Exception) -> None:
        """Notes that a call failed, so that a server that is not there does not take all attempts of all passages."""
        self._failed_calls += not _is_limit(error)
        if self._failed_calls >= _FIRST_CALLS and not self._has_succeeded:
            said = f"failed in {self._failed_calls} calls and none has succeeded"
            raise self._hopeless(said, CallFailedError(error, 1)) from error

    def _hopeless(self, said: str, error: CallFailedError) -> ChatModelError:
        return ChatModelError(
            f"The chat model {self._chat.name} {said}, the last time with {str(error).rstrip('.')}. Check its key, its "
            "name and the network."
        )

    async def _until_open(self) -> None:
        while (left := self._open_at - monotonic()) > 0:
            await sleep(left)


def is_passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself: a rate limit, a time-out, a lost connection, or an overloaded server."""
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUS or status >= 500
    if any(isinstance(one, (ConnectionError, TimeoutError, asyncio.TimeoutError)) for one in _chain(error)):
        return True
    names = (base.__name__ for one in _chain(error) for base in type(one).__mro__)
    return any(map(_PASSING_NAMES.search, names)) or _PASSING_WORDS.search(str(error)) is not None


def named_wait(error: BaseException) -> float | None:
    """Returns the seconds that a failure asks to wait, by a header Retry-After or its words, or `None`."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None) or getattr(one, "headers", None) or {}
        if isinstance(headers, Mapping):
            lower = {str(name).lower(): str(value) for name, value in headers.items()}
            for name, read in _HEADERS:
                if name in lower and (seconds := read(lower[name])) is not None:
                    return max(0.0, seconds)
        after = getattr(one, "retry_after", None)
        if isinstance(after, (int, float)) and not isinstance(after, bool):
            return max(0.0, float(after))
        if found := _WAIT_WORDS.search(str(one)):
            unit = found[2].lower()
            return float(found[1]) * (0.001 if unit.startswith(("ms", "milli")) else 60 if unit.startswith("m") else 1)
    return None


def _is_limit(error: BaseException) -> bool:
    return _status(error) == 429 or named_wait(error) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes, since frameworks wrap the errors of clients."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """Returns the status of HTTP in an error, under the names that clients give it."""
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        if isinstance(response, Mapping):  # boto's
            response = response.get("ResponseMetadata", {})
            candidates = [response.get("HTTPStatusCode")]
        else:
            candidates = [getattr(one, name, None) for name in ("status_code", "http_status", "status", "code")]
            candidates.append(getattr(response, "status_code", None))
        for value in candidates:
            if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
                return int(value)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _milliseconds(text: str) -> float | None:
    number = _number(text)
    return None if number is None else number / 1000


def _seconds(text: str) -> float | None:
    """Reads Retry-After: seconds, or a date."""
    number = _number(text)
    if number is not None:
        return number
    try:
        return parsedate_to_datetime(text).timestamp() - time()
    except (TypeError, ValueError):
        return None


_HEADERS: tuple[tuple[str, Callable[[str], float | None]], ...] = (
    ("retry-after-ms", _milliseconds),
    ("retry-after", _seconds),
)
