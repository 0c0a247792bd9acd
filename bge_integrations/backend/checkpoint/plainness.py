"""The exception for checkpoints that this package can't load by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_integrations.backend.checkpoint.json_files import OBJECT, MalformedJsonError, read_json


class NotPlainError(Exception):
    """Raised while files are described if only sentence-transformers can load them. The message says why."""


def read_object(file: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file; `None` if there is no file.

    Raises:
        NotPlainError: The file holds something else.
    """
    try:
        content: dict[str, Any] | None = read_json(file, OBJECT)
    except MalformedJsonError as error:
        raise NotPlainError(str(error)) from error
    return content
