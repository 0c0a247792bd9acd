"""`bge cache`: lists and removes cached graphs, and what evaluations have kept."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bge_integrations.cli.terminal import open_console, plain_table, print_json, print_table, print_text

if TYPE_CHECKING:
    from bge_integrations.backend.prepared.entries import CacheEntry
    from bge_integrations.evaluation.cache import CacheFile

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

    found, limit, kept = entries(), cache_limit(), _kept_results()
    try:
        folder = str(graphs_folder())
    except OSError as error:
        folder = f"no folder ({error.strerror})"
    if as_json:
        content = {
            "folder": folder,
            "limit_bytes": limit,
            "entries": [_as_json(entry) for entry in found],
            "evaluation": [{"file": str(file.path), "bytes": file.size, "last_used": file.used} for file in kept],
        }
        print_json(content)
        return
    console = open_console()
    if found:
        print_table(console, _table(found))
    size = sum(entry.size for entry in found) / _MIB
    bound = "no limit" if limit is None else f"limit {limit / _MIB:,.0f} MiB"
    print_text(console, f"{len(found)} in {folder}: {size:,.0f} MiB, {bound} ({LIMIT_VARIABLE})")
    if kept:
        size = sum(file.size for file in kept) / _MIB
        print_text(console, f"{len(kept)} files of `bge evaluate` in {kept[0].path.parent}: {size:,.0f} MiB, {bound}")


@cache.command()
def clear(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only graphs of this model; all graphs unless given.")
    ] = None,
    old: Annotated[bool, typer.Option("--old", help="Only graphs that this version can't use.")] = False,
) -> None:
    """Remove graphs, and results of `bge evaluate`. Programs that use them are not affected; they are made again."""
    from bge_integrations.backend.checkpoint.digests import cache_name, forget_digests
    from bge_integrations.backend.prepared.entries import entries, remove_entry

    chosen = [
        entry
        for entry in entries()
        if (model is None or (entry.summary is not None and entry.summary.source == model))
        and not (old and entry.is_current)
    ]
    gone = [entry for entry in chosen if remove_entry(entry)]
    if not old:
        prefix = "" if model is None else f"{cache_name(model)}_"
        for file in _kept_results():
            if file.path.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    file.path.unlink()
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


def _kept_results() -> list[CacheFile]:
    from bge_integrations.evaluation.cache import EvaluationCache

    try:
        return EvaluationCache().files()
    except OSError:  # no home folder
        return []


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
