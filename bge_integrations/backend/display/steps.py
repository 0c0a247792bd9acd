"""A line on the terminal about work that takes longer than a second, such as the first load of a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bge_integrations.backend.display.bars import steady

_SHOWN_AFTER_S = 1.0
_SHOWN_EVERY_S = 0.2
_LONGEST_WAIT_S = 1.0  # a terminal that is stopped must not stop the program


@contextmanager
def shown_steps(title: str) -> Iterator[None]:
    """Shows the title, the current step and the time on a terminal, while the block runs. Then the line is gone."""
    if not _is_terminal():
        yield
        return
    line = _Line(title)
    thread = threading.Thread(target=line.show, name="bge-steps", daemon=True)
    thread.start()
    token = _line.set(line)
    try:
        yield
    finally:
        _line.reset(token)
        line.ended.set()
        thread.join(_LONGEST_WAIT_S)


def say_step(step: str) -> None:
    """Names the next step of the work that this context shows, if it shows any."""
    line = _line.get()
    if line is not None:
        line.step = step


class _Line:
    def __init__(self, title: str) -> None:
        self._title = title
        self.step = ""
        self.ended = threading.Event()

    def show(self) -> None:
        """Shows the line until the work has ended."""
        if self.ended.wait(_SHOWN_AFTER_S):
            return
        from tqdm import tqdm

        bar = steady(tqdm)(bar_format="{desc} {elapsed}", leave=False, desc=self._text())
        while not self.ended.wait(_SHOWN_EVERY_S):
            bar.set_description_str(self._text())
        bar.close()

    def _text(self) -> str:
        return f"{self._title}: {self.step}" if self.step else self._title


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except Exception:  # an application's class, or a closed file
        return False


_line: ContextVar[_Line | None] = ContextVar("bge_integrations_steps", default=None)
