"""The line on a terminal about a load that takes longer than a second."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from bge_integrations import BgeEncoder
from bge_integrations.backend.display import steps
from bge_integrations.backend.display.steps import say_step, shown_steps
from bge_integrations.backend.loading import openvino
from bge_integrations.backend.prepared import build
from bge_integrations.prepare import prepare
from tests.conftest import MakeCheckpoint

_LONG = 30.0


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + _LONG
        while text not in self.getvalue():
            assert time.monotonic() < end, self.getvalue()
            time.sleep(0.01)

    @property
    def line(self) -> str:
        """What can be read at the end."""
        return self.getvalue().rpartition("\r")[2].strip()


UseTerminal = Callable[[], Terminal]


@pytest.fixture
def use_terminal(monkeypatch: pytest.MonkeyPatch) -> UseTerminal:
    """Makes standard error a terminal. Tests call it, since pytest sets standard error between fixtures and test."""

    def use() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setattr(steps, "_SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(steps, "_SHOWN_EVERY_S", 0.01)
    return use


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "bge-steps"]


def test_title_step_and_time_are_shown_and_then_gone(use_terminal: UseTerminal) -> None:
    terminal = use_terminal()
    with shown_steps("Loading fox"):
        terminal.wait_for("Loading fox 00:0")
        say_step("compiling")
        terminal.wait_for("Loading fox: compiling 00:0")
    assert terminal.line == ""
    assert not _threads()
    say_step("nobody's")
    assert "nobody" not in terminal.getvalue()


def test_short_work_and_other_streams_show_nothing(use_terminal: UseTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal()
    monkeypatch.setattr(steps, "_SHOWN_AFTER_S", _LONG)
    with shown_steps("Loading fox"):
        say_step("compiling")
    assert terminal.getvalue() == ""
    monkeypatch.setattr(steps, "_SHOWN_AFTER_S", 0.0)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with shown_steps("Loading fox"):
            assert not _threads()
        assert stream is None or stream.getvalue() == ""


def test_an_error_ends_it_and_passes(use_terminal: UseTerminal) -> None:
    terminal = use_terminal()

    def fail() -> NoReturn:
        with shown_steps("Loading fox"):
            terminal.wait_for("Loading fox")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert terminal.line == ""
    assert not _threads()


def test_a_terminal_that_breaks_costs_no_load(use_terminal: UseTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal()
    reached = threading.Event()

    def broken(_: str) -> NoReturn:
        reached.set()
        raise OSError("gone")

    monkeypatch.setattr(terminal, "write", broken)
    with shown_steps("Loading fox"):
        assert reached.wait(_LONG)
    assert not _threads()


def _slowly(monkeypatch: pytest.MonkeyPatch, terminal: Terminal, module: ModuleType, name: str, shown: str) -> None:
    """Lets a function of a module wait until the terminal shows a text."""
    work: Callable[..., object] = getattr(module, name)

    def slow(*args: object, **kwargs: object) -> object:
        terminal.wait_for(shown)
        return work(*args, **kwargs)

    monkeypatch.setattr(module, name, slow)


def test_a_first_load_names_the_model_and_the_step(
    make: MakeCheckpoint, use_terminal: UseTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = use_terminal()
    _slowly(monkeypatch, terminal, openvino, "cached_model", "Loading bge-small-en 00:0")
    _slowly(monkeypatch, terminal, openvino, "watched", "Loading bge-small-en: compiling the graph 00:0")
    encoder = BgeEncoder(make("bge-small-en"), device="cpu")
    assert encoder.encode_queries(["fox"]).shape == (1, 32)
    assert terminal.line == ""


def test_preparing_shows_it_too(
    make: MakeCheckpoint, tmp_path: Path, use_terminal: UseTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = use_terminal()
    _slowly(
        monkeypatch, terminal, build, "measure", "Preparing bge-small-en: measuring the agreement with float32 00:0"
    )
    prepare(make("bge-small-en"), tmp_path / "made", precision="int8")
    assert terminal.line == ""
