"""Prints texts and tables without losing words or numbers at the edge of a terminal. A file gets unbroken lines.

Characters that the console's encoding lacks are replaced: see `readable`.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Mapping

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

__all__ = [
    "READABLE",
    "open_console",
    "plain_table",
    "print_fields",
    "print_json",
    "print_table",
    "print_text",
    "readable",
]

READABLE = "bge_integrations.readable"
"""Name of the error handler in `codecs` that replaces characters. It is a valid `errors` argument of a stream."""

_PLAIN = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212─━╌╍┄┅┈┉═", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋", "|"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    **dict.fromkeys("\xa0\u2002\u2003\u2007\u2009\u200a\u202f", " "),
    **dict.fromkeys("•·", "*"),
    **dict.fromkeys("×✗", "x"),
    "…": "...",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "✓": "+",
    "█": "#",
}
_CORNERS = re.compile("[\u2500-\u257f]")

_UNBROKEN = 100_000
"""Columns of an output without an edge: a file or a pipe (broken lines can't be searched), or an unbroken table."""

_USUAL_COLUMNS, _LINES = 80, 25

_WORD = re.compile(r"\S*`[^`]+`\S*|\S+")
"""A word, or a command in backticks, which users copy as a whole."""


class _Console(Console):
    """A console that leaves a closed pipe to the command."""

    def on_broken_pipe(self) -> None:
        raise  # the caller's current exception


def open_console(*, stderr: bool = False) -> Console:
    """Returns a console with the width of `COLUMNS` or of the terminal. Without either, lines are not broken."""
    # Both sizes are given, since rich otherwise reads `COLUMNS` and `LINES`, and fails for some invalid values.
    console = _Console(stderr=stderr, width=_UNBROKEN, height=_LINES)
    console.width = _chosen_columns() or (_terminal_columns() if console.is_terminal else _UNBROKEN)
    return console


def readable(text: str, encoding: str) -> str:
    """Returns a text that an encoding can write. Other characters become similar ones, or escapes.

    For example, an ellipsis becomes three dots, and a Chinese character becomes its escape in a Python string.
    """
    return text.encode(encoding, READABLE).decode(encoding)


def print_text(
    console: Console, text: str, *, style: str = "", start: str | Text = "", margin: str | None = None
) -> None:
    """Prints text. Lines are broken only at spaces, so a long word such as a path stays whole.

    Args:
        console: Console to print to.
        text: Plain text, without markup. Its own line breaks stay.
        style: Style of the text.
        start: Text before the first line, with its own style.
        margin: Text before every further line. `None`: blanks as wide as `start`.
    """
    head = Text(start) if isinstance(start, str) else start.copy()
    head.plain = readable(head.plain, console.encoding)
    text = readable(text, console.encoding)
    margin = " " * head.cell_len if margin is None else margin
    for line in _lines(text, console.width - head.cell_len, console.width - cell_len(margin)):
        console.print(Text.assemble(head, (line, style)), soft_wrap=True)
        head = Text(margin)


def print_fields(console: Console, fields: Mapping[str, str], *, style: str = "", margin: str = "") -> None:
    """Prints names in a style, with their values beside them. Values are broken only at spaces."""
    width = max(map(cell_len, fields), default=0)
    for name, value in fields.items():
        print_text(console, value, start=Text.assemble(margin, (name, style), " " * (width - cell_len(name) + 2)))


def print_table(console: Console, table: Table) -> None:
    """Prints a table in its full width. A narrower terminal breaks its lines, and nothing is lost."""
    unbroken = console.options.update_width(_UNBROKEN)
    width = console.measure(table, options=unbroken).maximum
    segments = [
        Segment(readable(segment.text, console.encoding), segment.style, segment.control)
        for segment in console.render(table, console.options.update_width(width))
    ]
    console.print(Segments(segments), crop=False, end="")


def plain_table() -> Table:
    """Returns an empty table without borders."""
    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")


def print_json(content: object) -> None:
    """Prints JSON to the standard output, in ASCII unless its encoding is UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    typer.echo(json.dumps(content, ensure_ascii=encoding.lower().replace("-", "") != "utf8", indent=2))


def _chosen_columns() -> int | None:
    """Returns the width in `COLUMNS`, or `None` if it is not a width. Some programs set it to 0."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        return None
    return columns if columns > 0 else None


def _terminal_columns() -> int:
    for descriptor in range(3):
        try:
            columns = os.get_terminal_size(descriptor).columns
        except (OSError, ValueError, AttributeError):  # redirected, closed, or not supported by the system
            continue
        if columns > 0:
            return columns
    return _USUAL_COLUMNS


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if _CORNERS.fullmatch(character):
        return _PLAIN.get(character, "+")
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(READABLE, _replaced)


def _lines(text: str, first: int, further: int) -> list[str]:
    """Breaks text into lines of at most `first` columns, then at most `further` columns."""
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
