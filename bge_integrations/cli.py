"""The command `bge`."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bge_integrations.catalogue import MODELS, ModelSpec
from bge_integrations.errors import BgeError

if TYPE_CHECKING:
    from bge_integrations.backend.prepared import Quantization
    from bge_integrations.backend.purpose import Purpose
    from bge_integrations.prepare import PreparedPrecision

app = typer.Typer(help="BGE embedding models for LangChain and LlamaIndex.", no_args_is_help=True, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

# Without a terminal rich assumes 80 columns and cuts what is longer, also in a file or for grep.
_WIDTH_OF_FILES = 120


def main() -> None:
    """Runs the command; what this package raises on purpose is printed as one message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console or a pipe that knows no Chinese gets escapes instead of a UnicodeEncodeError.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BgeError as error:
        # Soft, so that a path or a command in the message can be copied whole.
        Console(stderr=True).print(f"bge: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
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
        _print_json([dataclasses.asdict(spec) for spec in rows])
    else:
        _print_models(rows)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show what a bug report needs: versions, devices, engines and caches."""
    from bge_integrations.environment import describe

    described = describe()
    if as_json:
        _print_json(described)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for topic in ("versions", "machine", "devices", "engines"):
        table.add_row(f"[bold]{topic}[/bold]")
        for name, value in described[topic].items():
            table.add_row(escape(f"  {name}"), escape(str(value)))
    table.add_row("[bold]caches[/bold]")
    for cache in described["caches"]:
        held = ", ".join(f"{name} ({mib:,.0f} MiB)" for name, mib in cache["models_mib"].items())
        table.add_row(escape(f"  {cache['folder']}"), held or ("no BGE model" if cache["exists"] else "no such folder"))
    _console().print(table)


@app.command()
def demo(
    ask: Annotated[list[str] | None, typer.Option(help="A question of your own; may be given several times.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; BAAI/bge-small-en-v1.5 unless given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Index only about so many docstrings.")] = None,
) -> None:
    """Search the docstrings of Python's standard library through LangChain and through LlamaIndex."""
    from bge_integrations.demo.run import run_demo

    run_demo(model, ask or None, limit)


@app.command()
def prepare(
    model: Annotated[str, typer.Argument(help="Hub id or folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
    purpose: Annotated[
        str | None, typer.Option(help="vectors, scores or m3 [default: scores for rerankers, else vectors].")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="For int8: static or dynamic.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A text file with a text of yours on each line, for int8.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    allow_pickle_weights: Annotated[bool, typer.Option(help="Load pytorch_model.bin if need be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a folder of a model that loads offline and without torch."""
    from bge_integrations.prepare import prepare, read_calibration

    manifest = prepare(
        model,
        output,
        precision=cast("PreparedPrecision", precision),
        purpose=cast("Purpose | None", purpose),
        quantization=cast("Quantization | None", quantization),
        calibration=read_calibration(calibration) if calibration else None,
        revision=revision,
        allow_pickle_weights=allow_pickle_weights,
    )
    if as_json:
        _print_json(dataclasses.asdict(manifest))
        return
    size = sum(file.stat().st_size for file in output.iterdir()) / 2**20
    _console().print(f"{output}: {manifest.source} in {precision}, {size:,.0f} MiB", highlight=False, markup=False)
    if manifest.agreement:
        agreement = manifest.agreement
        _console().print(
            f"agreement with float32 on {agreement.texts} texts: mean cosine {agreement.mean_cosine:.4f}, least "
            f"{agreement.least_cosine:.4f}",
            highlight=False,
        )
    _console().print(f"use it with model_name={str(output)!r}", highlight=False, markup=False)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or folder made by `bge prepare`.")],
    seconds: Annotated[float, typer.Option(min=1, help="Time to spend, about.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Compare engines and precisions on this machine, and recommend settings."""
    from bge_integrations.bench import print_report, run_bench

    report = run_bench(model, seconds)
    if as_json:
        _print_json(dataclasses.asdict(report))
    else:
        print_report(report, _console())


def _require_known(option: str, wanted: str | None, known: set[str]) -> None:
    if wanted is not None and wanted not in known:
        raise typer.BadParameter(f"{wanted!r} is unknown; choose one of {', '.join(sorted(known))}.", param_hint=option)


def _print_json(content: object) -> None:
    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(content, ensure_ascii=not readable, indent=2))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH_OF_FILES)


def _print_models(rows: list[ModelSpec]) -> None:
    """Prints a line for each, with a letter for its query instruction, and below what the letters stand for."""
    instructions = dict.fromkeys(_instruction(spec) for spec in rows if _instruction(spec))
    letters = dict(zip(instructions, string.ascii_lowercase, strict=False))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in ("kind", "languages", "query"):
        table.add_column(column)
    for column in ("dim", "tokens", "params", "average"):
        table.add_column(column, justify="right", no_wrap=True)
    for spec in rows:
        table.add_row(
            spec.model_id,
            spec.kind,
            ", ".join(spec.languages),
            letters.get(_instruction(spec), "–"),
            str(spec.dimension or "–"),
            str(spec.max_tokens or "–"),
            _size(spec.parameters_millions),
            _average(spec),
        )
    console = _console()
    console.print(table)
    if letters:
        console.print("\nquery: the instruction that goes before a query, and – for none", markup=False)
    for instruction, letter in letters.items():
        console.print(f"  {letter}  {instruction}", markup=False, highlight=False, soft_wrap=True)
    if any(spec.mteb_average or spec.cmteb_average for spec in rows):
        console.print("average: published, over the 56 tasks of MTEB (en) or the 31 of C-MTEB (zh)", highlight=False)


def _instruction(spec: ModelSpec) -> str:
    query = spec.query_template or spec.query_instruction
    passage = f", and before passages {spec.passage_instruction!r}" if spec.passage_instruction else ""
    return f"{query!r}{passage}" if query else ""


def _size(millions: int | None) -> str:
    if millions is None:
        return "–"
    return f"{millions} M" if millions < 1000 else f"{millions / 1000:g} B"


def _average(spec: ModelSpec) -> str:
    average = spec.mteb_average or spec.cmteb_average
    return f"{average:.2f}" if average else "–"
