"""What the tables of all benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDTH = 100


def make_table(title: str, *columns: str, width: int = _WIDTH) -> Table:
    """Makes a table with a column of names, and columns of numbers.

    Args:
        title: The title.
        columns: Headings of the columns of numbers.
        width: The least width in characters.
    """
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, min_width=width)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def ratio_cell(ratio: float | None) -> str:
    """Returns a ratio with two digits, or a dash where there is none."""
    return "–" if ratio is None else f"{ratio:.2f}"


def print_left_out(console: Console, left_out: Mapping[str, str], part: str = "") -> None:
    """Prints who did not take part, and why.

    Args:
        console: Where to.
        left_out: The reason by name.
        part: Text before the name.
    """
    for name, why in left_out.items():
        console.print(f"left out, {part}{name}: {why}", style="yellow", markup=False, soft_wrap=True)
