"""Prints the output of `bge info`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bge_integrations.cli.terminal import print_fields, print_text

__all__ = ["print_information"]

_MARGIN = "  "


def print_information(console: Console, described: dict[str, Any]) -> None:
    """Prints the result of `environment.describe`, topic by topic."""
    machine = described["machine"]
    told = {
        "system": machine["system"],
        "processor": machine["processor"],
        "cores": str(machine["cores"]),
        "threads": _least(described["threads"]),
        "memory": f"{machine['memory_gib']:,} GiB",
        "temporary files": _room(described["temporary_files"]),
    }
    topics = {**described, "machine": told}
    for topic in ("versions", "machine", "devices", "engines"):
        _print_topic(console, topic, topics[topic])
    _print_topic(console, "hub caches", {cache["folder"]: _held(cache) for cache in described["caches"]})
    graphs = described["graph_cache"]
    if graphs["folder"] is None:
        content = {"folder": f"none: {graphs['problem']}"}
    elif graphs["exists"]:
        content = {"folder": graphs["folder"], "entries": f"{graphs['entries']}", "size": f"{graphs['mib']:,.0f} MiB"}
    else:
        content = {"folder": graphs["folder"], "entries": "no such folder yet"}
    _print_topic(console, "graph cache", content)


def _print_topic(console: Console, topic: str, fields: dict[str, str]) -> None:
    print_text(console, topic, style="bold")
    print_fields(console, fields, margin=_MARGIN)


def _least(limits: dict[str, int]) -> str:
    """Returns the default number of threads and the limits that it comes from."""
    return f"{min(limits.values())}, the least of {', '.join(f'{name} ({limit})' for name, limit in limits.items())}"


def _room(place: dict[str, Any]) -> str:
    return f"{place['folder']} ({place['free_gib']:,} GiB free)" if place["folder"] else f"none: {place['problem']}"


def _held(cache: dict[str, Any]) -> str:
    if not cache["exists"]:
        return "no such folder"
    held = ", ".join(f"{name} ({mib:,.0f} MiB)" for name, mib in cache["models_mib"].items()) or "no BGE model"
    return held + {True: "", False: "; no symlinks: files are copied", None: "; can't be written to"}[cache["symlinks"]]
