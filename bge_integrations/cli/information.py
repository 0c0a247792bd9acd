"""What `bge info` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bge_integrations.terminal import print_fields, print_text

__all__ = ["print_information"]

_MARGIN = "  "


def print_information(console: Console, described: dict[str, Any]) -> None:
    """Prints what `environment.describe` returned, topic by topic."""
    for topic in ("versions", "machine", "devices", "engines"):
        _print_topic(console, topic, {name: str(value) for name, value in described[topic].items()})
    _print_topic(console, "hub caches", {cache["folder"]: _held(cache) for cache in described["caches"]})
    graphs = described["graph_cache"]
    if graphs["exists"]:
        content = {"entries": f"{graphs['entries']}", "size": f"{graphs['mib']:,.0f} MiB"}
    else:
        content = {"entries": "no such folder yet"}
    _print_topic(console, "graph cache", {"folder": graphs["folder"], **content})


def _print_topic(console: Console, topic: str, fields: dict[str, str]) -> None:
    print_text(console, topic, style="bold")
    print_fields(console, fields, margin=_MARGIN)


def _held(cache: dict[str, Any]) -> str:
    if not cache["exists"]:
        return "no such folder"
    return ", ".join(f"{name} ({mib:,.0f} MiB)" for name, mib in cache["models_mib"].items()) or "no BGE model"
