"""Prints the table of `bge models`."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from bge_integrations.catalogue import ModelSpec
from bge_integrations.cli.terminal import plain_table, print_table, print_text

__all__ = ["print_models"]

_Cell = Callable[[ModelSpec], str]


def print_models(console: Console, rows: Sequence[ModelSpec]) -> None:
    """Prints one line a model, with a letter for its query instruction, and the instructions below.

    A console that is too narrow for one table gets a table for each kind, without empty columns.
    """
    instructions = dict.fromkeys(_instruction(spec) for spec in rows if _instruction(spec))
    letters = dict(zip(instructions, string.ascii_lowercase, strict=False))
    table = _table(rows, letters, with_kind=True)
    if console.measure(table, options=console.options.update_width(1000)).maximum <= console.width:
        print_table(console, table)
    else:
        for number, (kind, group) in enumerate(itertools.groupby(_by_kind(rows), key=lambda spec: spec.kind)):
            print_text(console, f"kind: {kind}", style="bold", start="\n" if number else "")
            print_table(console, _table(list(group), letters, with_kind=False))
    _print_notes(console, rows, letters)


def _by_kind(rows: Sequence[ModelSpec]) -> list[ModelSpec]:
    kinds = list(dict.fromkeys(spec.kind for spec in rows))
    return sorted(rows, key=lambda spec: kinds.index(spec.kind))


def _table(rows: Sequence[ModelSpec], letters: dict[str, str], *, with_kind: bool) -> Table:
    columns: dict[str, _Cell] = {
        "model": lambda spec: spec.model_id,
        "kind": lambda spec: spec.kind if with_kind else "",
        "languages": lambda spec: ", ".join(spec.languages),
        "query": lambda spec: letters.get(_instruction(spec), ""),
        "dim": lambda spec: str(spec.dimension or ""),
        "tokens": lambda spec: str(spec.max_tokens or ""),
        "size": _size,
        "score": _score,
    }
    texts = {name: [cell(spec) for spec in rows] for name, cell in columns.items()}
    shown = texts if with_kind else {name: column for name, column in texts.items() if any(column)}
    table = plain_table()
    for name in shown:
        table.add_column(name, no_wrap=True, justify="right" if name in ("dim", "tokens", "size", "score") else "left")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(cell or "–" for cell in cells))
    return table


def _print_notes(console: Console, rows: Sequence[ModelSpec], letters: dict[str, str]) -> None:
    print_text(console, "tokens: the longest text; size: parameters", start="\n")
    if any(_score(spec) for spec in rows):
        print_text(console, "score: published, the average of MTEB's 56 tasks (en) or C-MTEB's 31 (zh; v1.5: 35)")
    if letters:
        print_text(console, "query: the instruction before a query; –: no instruction")
    for instruction, letter in letters.items():
        print_text(console, instruction, start=f"  {letter}  ")


def _instruction(spec: ModelSpec) -> str:
    query = spec.query_template or spec.query_instruction
    passage = f", and before passages {spec.passage_instruction!r}" if spec.passage_instruction else ""
    return f"{query!r}{passage}" if query else ""


def _size(spec: ModelSpec) -> str:
    millions = spec.parameters_millions
    if millions is None:
        return ""
    return f"{millions} M" if millions < 1000 else f"{millions / 1000:g} B"


def _score(spec: ModelSpec) -> str:
    average = spec.mteb_average or spec.cmteb_average
    return f"{average:.2f}" if average else ""
