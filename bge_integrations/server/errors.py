"""Refused requests, and the form of their answers in each interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "invalid", "too_large", "too_slow", "unauthorized", "not_found", "no_model", "overloaded", "closing", "failed"
]
"""Why a request is refused."""

_STATUS: dict[Kind, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "not_found": 404,
    "no_model": 404,
    "too_slow": 408,
    "too_large": 413,
    "overloaded": 429,
    "failed": 500,
    "closing": 503,
}

_HEADERS: dict[Kind, dict[str, str]] = {
    "unauthorized": {"WWW-Authenticate": "Bearer"},
    "too_slow": {"Connection": "close"},  # the rest of the body may never come
}


class Refused(Exception):
    """A request that gets an error as its answer.

    Attributes:
        kind: The reason.
        message: The reason in words, for the client. It holds no path and no secret.
        place: The field or the text that is wrong, such as `input[3]`.
        retry_after: Seconds after which the client can try again.
        status: An HTTP status other than the interface's usual one.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        place: str | None = None,
        retry_after: int | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.place = place
        self.retry_after = retry_after
        self.status = status

    def headers(self) -> dict[str, str]:
        """Returns the headers of the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | _HEADERS.get(self.kind, {})


@dataclass(frozen=True)
class Api:
    """One of the interfaces.

    Attributes:
        name: Its name.
        write: Function that makes the body of an error from the refusal.
        statuses: Statuses that differ from the usual ones.
    """

    name: str
    write: Callable[[Refused], dict[str, Any]]
    statuses: Mapping[Kind, int] = field(default_factory=dict)

    def status(self, refused: Refused) -> int:
        """Returns the HTTP status of a refusal."""
        return refused.status or self.statuses.get(refused.kind, _STATUS[refused.kind])

    def body(self, refused: Refused) -> dict[str, Any]:
        """Returns the body of a refusal."""
        return self.write(refused)


_OPENAI_TYPES: dict[Kind, tuple[str, str | None]] = {
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "no_model": ("invalid_request_error", "model_not_found"),
    "overloaded": ("requests", "rate_limit_exceeded"),
    "closing": ("server_error", "shutting_down"),
    "failed": ("server_error", None),
}


def _openai(refused: Refused) -> dict[str, Any]:
    kind, code = _OPENAI_TYPES.get(refused.kind, ("invalid_request_error", None))
    return {"error": {"message": refused.message, "type": kind, "param": refused.place, "code": code}}


_TEI_TYPES: dict[Kind, str] = {
    "overloaded": "Overloaded",
    "closing": "Unhealthy",
    "failed": "Backend",
    "no_model": "Backend",
}


def _tei(refused: Refused) -> dict[str, Any]:
    return {"error": refused.message, "error_type": _TEI_TYPES.get(refused.kind, "Validation")}


def _cohere(refused: Refused) -> dict[str, Any]:
    return {"message": refused.message}


OPENAI = Api("OpenAI", _openai)
TEI = Api("TEI", _tei, {"invalid": 422, "failed": 424, "no_model": 424})
COHERE = Api("Cohere", _cohere)
