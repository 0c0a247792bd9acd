"""How the commands print: no word and no figure is lost at the edge of a terminal, and a file gets whole lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

__all__ = ["open_console", "print_fields", "print_table", "print_text"]

_UNBROKEN = 100_000
"""Columns of what has no edge: a file or a pipe, where a broken line can't be searched for, and a table as it is."""

_WORD = re.compile(r"\S*`[^`]+`\S*|\S+")
"""A word, or a command in backticks, which is copied as a whole."""


def open_console(*, stderr: bool = False) -> Console:
    """Returns a console as wide as the terminal, or as `COLUMNS` says; without either, lines are not broken."""
    console = Console(stderr=stderr)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, width=_UNBROKEN)


def print_text(
    console: Console, text: str, *, style: str = "", start: str | Text = "", margin: str | None = None
) -> None:
    """Prints text that is broken only at spaces; a longer word, such as a path, stays whole.

    Args:
        console: Where to.
        text: Plain text, without markup. Its own line breaks stay.
        style: Of the text.
        start: What stands before the first line, in a style of its own.
        margin: What stands before every further line; None takes blanks as wide as `start`.
    """
    head = Text(start) if isinstance(start, str) else start
    margin = " " * head.cell_len if margin is None else margin
    for line in _lines(text, console.width - head.cell_len, console.width - cell_len(margin)):
        console.print(Text.assemble(head, (line, style)), soft_wrap=True)
        head = Text(margin)


def print_fields(console: Console, fields: Mapping[str, str], *, style: str = "", margin: str = "") -> None:
    """Prints names, in a style, and beside them their values, broken only at spaces."""
    width = max(map(cell_len, fields), default=0)
    for name, value in fields.items():
        print_text(console, value, start=Text.assemble(margin, (name, style), " " * (width - cell_len(name) + 2)))


def print_table(console: Console, table: Table) -> None:
    """Prints a table as wide as it is; a terminal that is narrower breaks its lines, and nothing is left out."""
    unbroken = console.options.update_width(_UNBROKEN)
    width = console.measure(table, options=unbroken).maximum
    console.print(Segments(console.render(table, console.options.update_width(width))), crop=False, end="")


def _lines(text: str, first: int, further: int) -> list[str]:
    """Breaks text into lines of at most so many columns."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, width = "", first if not lines else further
        for word in _WORD.findall(paragraph):
            if line and cell_len(line) + 1 + cell_len(word) > width:
                lines.append(line)
                line, width = word, further
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
