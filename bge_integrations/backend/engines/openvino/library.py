"""OpenVINO and its quantiser, imported without their telemetry: the only place that imports them.

`import openvino` reports to its makers through the package openvino-telemetry, also offline: it writes a client id into
the home folder, forks a process and opens a connection. Under the start method "spawn" that process runs an unguarded
script of the user a second time; under gevent it goes on with the user's program. Without that package OpenVINO takes a
stand-in of its own that does nothing, and so does nncf. So while they are imported, the package can't be.

A program that has imported OpenVINO before keeps the telemetry that came with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bge_integrations._optional import require

__all__ = ["import_quantizer", "op", "ov"]

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    before = sys.modules.get(_TELEMETRY)
    # None there makes an import raise ModuleNotFoundError.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop(_TELEMETRY, None)
        else:
            sys.modules[_TELEMETRY] = before


with _without_telemetry():
    import openvino as ov
    from openvino import opset13 as op


def import_quantizer() -> Any:  # noqa: ANN401 - a module without types
    """Imports nncf.

    Raises:
        MissingExtraError: It is not installed.
    """
    with _without_telemetry():
        return require("nncf", extra="prepare")
