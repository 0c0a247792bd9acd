"""`bge cache`: lists and removes cached graphs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bge_integrations.cli.terminal import open_console, plain_table, print_json, print_table, print_text

if TYPE_CHECKING:
    from bge_integrations.backend.prepared.entries import CacheEntry

__all__ = ["cache"]

cache = typer.Typer(
    help="List or remove cached graphs, which make starts quick.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

_MIB = 2**20


@cache.callback(invoke_without_command=True)
def list_entries(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List or remove cached graphs, which make starts quick."""
    if context.invoked_subcommand is not None:
        return
    from bge_integrations.backend.prepared.entries import LIMIT_VARIABLE, cache_limit, entries, graphs_folder

    found, limit = entries(), cache_limit()
    try:
        folder = str(graphs_folder())
    except OSError as error:
        folder = f"no folder ({error.strerror})"
    if as_json:
        content = {"folder": folder, "limit_bytes": limit, "entries": [_as_json(entry) for entry in found]}
        print_json(content)
        return
    console = open_console()
    if found:
        print_table(console, _table(found))
    size = sum(entry.size for entry in found) / _MIB
    bound = "no limit" if limit is None else f"limit {limit / _MIB:,.0f} MiB"
    print_text(console, f"{len(found)} in {folder}: {size:,.0f} MiB, {bound} ({LIMIT_VARIABLE})")


@cache.command()
def clear(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only graphs of this model; all graphs unless given.")
    ] = None,
    old: Annotated[bool, typer.Option("--old", help="Only graphs that this version can't use.")] = False,
) -> None:
    """Remove graphs. Programs that use a removed graph are not affected. It is made again at its next use."""
    from bge_integrations.backend.checkpoint.digests import forget_digests
    from bge_integrations.backend.prepared.entries import entries, remove_entry

    chosen = [
        entry
        for entry in entries()
        if (model is None or (entry.summary is not None and entry.summary.source == model))
        and not (old and entry.is_current)
    ]
    gone = [entry for entry in chosen if remove_entry(entry)]
    if model is None and not old:
        with contextlib.suppress(OSError):
            forget_digests()
    console = open_console()
    print_text(console, f"removed {len(gone)}: {sum(entry.size for entry in gone) / _MIB:,.0f} MiB")
    for entry in chosen:
        if entry not in gone:
            print_text(open_console(stderr=True), f"bge: {entry.folder} can't be removed now", style="yellow")
    if len(gone) < len(chosen):
        raise typer.Exit(1)


def _table(entries: list[CacheEntry]) -> Table:
    table = plain_table()
    for name in ("model", "precision", "purpose", "MiB", "last used", ""):
        table.add_column(name, no_wrap=True, justify="right" if name == "MiB" else "left")
    for entry in entries:
        summary = entry.summary
        made = (summary.source, summary.precision, summary.purpose) if summary else ("?", "?", "?")
        state = "" if entry.is_current else "of another version" if summary else "damaged"
        table.add_row(*made, f"{entry.size / _MIB:,.0f}", _day(entry), state)
    return table


def _day(entry: CacheEntry) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(entry.used))


def _as_json(entry: CacheEntry) -> dict[str, object]:
    summary = entry.summary
    return {
        "folder": str(entry.folder),
        "model": summary.source if summary else None,
        "precision": summary.precision if summary else None,
        "purpose": summary.purpose if summary else None,
        "is_current": entry.is_current,
        "bytes": entry.size,
        "last_used": entry.used,
    }
