"""OpenVINO and its quantiser nncf, imported without their telemetry. No other module imports them.

`import openvino` sends telemetry with the package openvino-telemetry, also offline: it writes a client id into the home
folder, forks a process and opens a connection. With the start method "spawn" that process runs an unguarded user script
a second time; under gevent it continues the user's program. Without that package, OpenVINO and nncf use a stub that
does nothing. So this module blocks the import of openvino-telemetry while it imports them.

A program that has imported OpenVINO earlier keeps its telemetry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bge_integrations._optional import require
from bge_integrations.backend.guarantees.forks import native_code
from bge_integrations.backend.guarantees.signals import kept_signal_stack

__all__ = ["import_quantizer", "op", "openvino_core", "ov"]

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    before = sys.modules.get(_TELEMETRY)
    # `None` in `sys.modules` makes an import raise ModuleNotFoundError.
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


@contextmanager
def openvino_core() -> Iterator[ov.Core]:
    """Yields what compiles and reads graphs, as native code that no fork and no signal harms."""
    with native_code(), kept_signal_stack():
        yield ov.Core()


def import_quantizer() -> Any:  # noqa: ANN401 - a module without types
    """Imports nncf.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    with _without_telemetry():
        return require("nncf", extra="prepare")
