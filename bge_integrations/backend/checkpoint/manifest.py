"""The manifest, by which a prepared folder differs from a checkpoint. Only the part that every format has is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bge_integrations.backend.checkpoint.json_files import (
    OBJECT,
    TEXT,
    MalformedJsonError,
    object_of,
    object_with,
    read_json,
)
from bge_integrations.errors import PreparedModelError

MANIFEST = "bge.json"
PRECISIONS = ("float32", "bfloat16", "int8")

_CONTENT_OF_ANY_FORMAT = object_with({"manifest": OBJECT, "versions": object_of(TEXT)})


def is_prepared(folder: Path) -> bool:
    """Whether a folder has the manifest of a prepared model."""
    return os.path.isfile(folder / MANIFEST)  # pathlib raises for too long names and closed folders


def recorded_precision(model_name: str) -> str | None:
    """Returns the precision of a prepared folder; `None` for any other name. Checks nothing else in the folder."""
    folder = Path(os.path.expanduser(model_name))
    if not is_prepared(folder):
        return None
    precision = read_manifest(folder).get("manifest", {}).get("precision")
    return precision if precision in PRECISIONS else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the part of a manifest that every format has.

    Raises:
        PreparedModelError: The manifest is missing or damaged.
    """
    try:
        content: dict[str, Any] | None = read_json(folder / MANIFEST, _CONTENT_OF_ANY_FORMAT)
    except MalformedJsonError as error:
        raise damaged(folder, str(error)) from error
    if content is None:
        raise damaged(folder, f"{MANIFEST} is missing")
    return content


def damaged(folder: Path, what: str) -> PreparedModelError:
    """Returns the error for a damaged prepared folder."""
    return PreparedModelError(f"{folder} is damaged: {what}. Copy or prepare it again.")
