"""Nothing that this package does is reported to anybody: no process, no connection, no file in the home folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bge_integrations.backend.engines.openvino import library
from tests.test_package import run_python

# A process of its own, since OpenVINO is imported once, and nncf reports nothing where pytest is imported.
_WATCHED = """
import sys

seen = []

def watch(event, arguments):
    if event in ("os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "socket.getaddrinfo", "urllib.Request"):
        seen.append(event)
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        seen.append(event)

from bge_integrations import BgeEncoder
from bge_integrations.prepare import prepare
import torch, transformers, sentence_transformers  # what they start is their own

sys.addaudithook(watch)
BgeEncoder(sys.argv[1], device="cpu", engine="openvino").encode_queries(["fox"])
prepare(sys.argv[1], sys.argv[2], precision="int8", quantization="static")
assert "openvino.tools.ovc" in sys.modules and "nncf" in sys.modules
assert "openvino_telemetry" not in sys.modules
assert not seen, seen
"""


def test_loading_and_quantising_report_to_nobody(
    bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("CI", raising=False)
    run_python(_WATCHED, str(bge_small_en), str(tmp_path / "prepared"))
    assert not [path for path in home.rglob("*") if "intel" in path.parts or "cid" in path.name]


def test_the_telemetry_of_others_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    with library._without_telemetry():
        during: dict[str, object] = {**sys.modules}
    assert during["openvino_telemetry"] is None  # so that an import raises ModuleNotFoundError
    assert sys.modules["openvino_telemetry"] is theirs
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    with pytest.raises(ValueError, match="damaged"), library._without_telemetry():
        raise ValueError("damaged")
    assert "openvino_telemetry" not in sys.modules
