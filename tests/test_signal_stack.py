"""Signals after OpenVINO ran in the main thread. Its plugin sets a stack for their handlers, and frees it later."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from bge_integrations.backend.engines.openvino.library import op, openvino_core, ov
from bge_integrations.backend.guarantees.signals import _SignalStack

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the plugin sets no such stack")

_SCRIPT = """
import faulthandler, signal, sys, threading, time
import numpy as np
from bge_integrations.backend.engines.openvino.library import op, openvino_core, ov

if "stack" in sys.argv:
    faulthandler.enable()
column = op.parameter([-1, 4], np.float32)
kept = []
for _ in range(2):
    with openvino_core() as core:
        kept.append(core.compile_model(ov.Model([op.add(column, column)], [column]), "CPU"))
del core
freeing = threading.Thread(target=kept.clear)
freeing.start()
freeing.join()
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
while len(seen) < 5:
    time.sleep(0.01)
signal.setitimer(signal.ITIMER_REAL, 0)
print("alive")
"""


@pytest.mark.parametrize("own", ["stack", "none"])
def test_signals_are_handled_after_a_model_is_freed_by_another_thread(own: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, own], capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_thread_has_the_stack_that_it_had() -> None:
    before, column = _current(), op.parameter([-1, 4], np.float32)
    with openvino_core() as core:
        compiled = core.compile_model(ov.Model([op.add(column, column)], [column]), "CPU")
        assert _current() != before  # else the plugin sets none any more, and nothing of this is needed
    assert _current() == before
    del compiled, core
    assert _current() == before


def _current() -> tuple[int | None, int, int]:
    found = _SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.address, found.flags, found.size
