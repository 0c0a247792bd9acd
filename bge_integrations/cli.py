"""The command `bge`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bge_integrations.catalogue import MODELS, ModelSpec
from bge_integrations.errors import BgeError

app = typer.Typer(help="BGE embedding models for LangChain and LlamaIndex.", no_args_is_help=True, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Runs the command; what this package raises on purpose is printed as one message."""
    try:
        app()
    except BgeError as error:
        Console(stderr=True).print(f"bge: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from bge_integrations import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def models(
    language: Annotated[str | None, typer.Option(help="Only models for it: en, zh, multilingual or code.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only embedder, reranker or base.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every BGE model with what is known of it."""
    _require_known("--language", language, {name for spec in MODELS for name in spec.languages})
    _require_known("--kind", kind, {spec.kind for spec in MODELS})
    rows = [spec for spec in MODELS if language in (None, *spec.languages) and kind in (None, spec.kind)]
    if as_json:
        typer.echo(json.dumps([_as_data(spec) for spec in rows], ensure_ascii=False, indent=2))
    else:
        Console().print(_models_table(rows))


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show what a bug report needs: versions, devices, engines and caches."""
    from bge_integrations.environment import describe

    described = describe()
    if as_json:
        typer.echo(json.dumps(described, ensure_ascii=False, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for topic in ("versions", "machine", "devices", "engines"):
        table.add_row(f"[bold]{topic}[/bold]")
        for name, value in described[topic].items():
            table.add_row(f"  {name}", str(value))
    table.add_row("[bold]caches[/bold]")
    for cache in described["caches"]:
        held = ", ".join(f"{name} ({mib:,.0f} MiB)" for name, mib in cache["models_mib"].items())
        table.add_row(f"  {cache['folder']}", held or ("no BGE model" if cache["exists"] else "no such folder"))
    Console().print(table)


@app.command()
def demo(
    ask: Annotated[list[str] | None, typer.Option(help="A question of your own; may be given several times.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder [default: BAAI/bge-small-en-v1.5].")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Index only about so many docstrings.")] = None,
) -> None:
    """Search the docstrings of Python's standard library through LangChain and through LlamaIndex."""
    from bge_integrations.demo.run import run_demo

    run_demo(model, ask or None, limit)


def _require_known(option: str, wanted: str | None, known: set[str]) -> None:
    if wanted is not None and wanted not in known:
        raise typer.BadParameter(f"{wanted!r} is unknown; choose one of {', '.join(sorted(known))}.", param_hint=option)


def _as_data(spec: ModelSpec) -> dict[str, Any]:
    data = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}


def _models_table(rows: list[ModelSpec]) -> Table:
    table = Table(title=f"{len(rows)} BGE models", header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in ("kind", "languages", "query instruction"):
        table.add_column(column, overflow="fold")
    for column in ("dim", "tokens", "params", "MTEB", "C-MTEB"):
        table.add_column(column, justify="right")
    for spec in rows:
        instruction = spec.query_template or spec.query_instruction
        table.add_row(
            spec.model_id,
            spec.kind,
            ", ".join(spec.languages),
            repr(instruction) if instruction else "–",
            *(_number(value) for value in (spec.dimension, spec.max_tokens)),
            f"{spec.parameters_millions} M" if spec.parameters_millions else "–",
            *(f"{value:.2f}" if value else "–" for value in (spec.mteb_average, spec.cmteb_average)),
        )
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)
