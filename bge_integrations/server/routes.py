"""What a route of the server is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bge_integrations.calls.lengths import LengthCounts
from bge_integrations.server.errors import Api
from bge_integrations.server.inputs import Body
from bge_integrations.server.models import Models

PRIORITY = "priority is interactive or bulk, by default as input_type says."
"""What routes say about the field of `inputs.Queued`."""


@dataclass(frozen=True)
class Answer:
    """The answer of a route.

    Attributes:
        content: What becomes JSON. numpy arrays of floats are written as lists.
        headers: Headers.
    """

    content: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, counts: LengthCounts) -> Answer:  # noqa: ANN401 - what JSON can be
        """Returns an answer that says how many texts were cut, if any were."""
        return cls(content, {"X-Truncated-Texts": str(counts.cut)} if counts.cut else {})


@dataclass(frozen=True)
class Route:
    """A route that takes JSON."""

    path: str
    api: Api
    body: type[Body]
    answer: Callable[[Models, Any], Awaitable[Answer]]
    about: str
    example: object
