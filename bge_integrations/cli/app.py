"""The commands and their options."""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from bge_integrations.catalogue import MODELS
from bge_integrations.catalogue.scores import MINILM, scored_models
from bge_integrations.cli.cache import cache
from bge_integrations.cli.documents import improve, make_queries
from bge_integrations.cli.embed import embed
from bge_integrations.cli.indexes import check_index, fingerprint
from bge_integrations.cli.measuring import evaluate, mteb
from bge_integrations.cli.models import print_models
from bge_integrations.cli.options import PRIVATE, AsJson, Loading, with_single_options
from bge_integrations.cli.scores import described_scores, print_scores
from bge_integrations.cli.serve import serve
from bge_integrations.cli.terminal import READABLE, open_console, print_json, print_text
from bge_integrations.cli.tuning import mine, pretrain, train
from bge_integrations.cli.wording import in_options, options_of
from bge_integrations.errors import BgeError

if TYPE_CHECKING:
    from bge_integrations.backend.prepared.folder import QuantizationChoice
    from bge_integrations.prepare import PreparedPrecision
    from bge_integrations.settings import Purpose

# Plain help: frames leave too little room for long options at 80 columns, and markup removes text in brackets.
app = typer.Typer(
    help="BGE embedding models for LangChain and LlamaIndex.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# The exit status of a tool that SIGPIPE ends. Windows has no such signal.
_CLOSED_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1


def main() -> None:
    """Runs the command. An exception of this package is printed as one message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Escapes instead of a UnicodeEncodeError where the encoding has no Chinese characters.
            stream.reconfigure(errors=READABLE)
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also disables transformers' bars, which fill a log
    warnings.showwarning = _show_warning
    try:
        app()
    except BgeError as error:
        _complain(str(error), "red")
        sys.exit(1)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _drop_output()
        sys.exit(_CLOSED_PIPE)
    except OSError as error:
        if _can_be_written():
            raise
        _drop_output()
        _complain(f"The output can't be written: {error.strerror}.", "red")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from bge_integrations import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def models(
    language: Annotated[str | None, typer.Option(help="Only this language: en, zh, multilingual or code.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind: embedder, reranker or base.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Show published scores on MTEB and C-MTEB instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every BGE model with its known facts."""
    _require_known("--language", language, {name for spec in MODELS for name in spec.languages})
    _require_known("--kind", kind, {spec.kind for spec in MODELS})
    rows = [spec for spec in MODELS if language in (None, *spec.languages) and kind in (None, spec.kind)]
    if scores:
        _show_scores([spec.model_id for spec in rows], language, kind, as_json=as_json)
    elif as_json:
        print_json([dataclasses.asdict(spec) for spec in rows])
    else:
        print_models(open_console(), rows)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show the facts for a bug report: versions, devices, engines and caches."""
    from bge_integrations.cli.environment import describe
    from bge_integrations.cli.information import print_information

    described = describe()
    if as_json:
        print_json(described)
    else:
        print_information(open_console(), described)


@app.command(epilog=PRIVATE)
@with_single_options
def demo(
    ask: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Your own question. Repeat the option for more questions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; BAAI/bge-small-en-v1.5 unless given.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of docstrings to index; 3000 unless given.")
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Search the docstrings of Python's standard library through LangChain and through LlamaIndex."""
    from bge_integrations.cli.demo.run import run_demo

    run_demo(
        model,
        ask or None,
        limit,
        open_console(),
        **loading.settings(),
    )


@app.command(epilog=PRIVATE)
@with_single_options
def prepare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="Folder to create. An existing one must be empty.")
    ],
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
    purpose: Annotated[
        str | None,
        typer.Option(help="vectors, scores or m3; unless given, scores for rerankers and vectors for other models."),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="For int8: dynamic, static, mixed, or fastest, which measures all three.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="For int8: a text file with one of your texts on each line.")
    ] = None,
    *,
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Convert a model to a folder that loads offline and without torch."""
    from bge_integrations.prepare import prepare, read_calibration

    manifest = prepare(
        model,
        output,
        precision=cast("PreparedPrecision", precision),
        purpose=cast("Purpose | None", purpose),
        quantization=cast("QuantizationChoice | None", quantization),
        calibration=read_calibration(calibration) if calibration else None,
        **loading.settings(),
    )
    if as_json:
        print_json(dataclasses.asdict(manifest))
        return
    console = open_console()
    size = sum(file.stat().st_size for file in Path(output).expanduser().iterdir() if file.is_file()) / 2**20
    how = f" ({manifest.quantization})" if manifest.quantization else ""
    print_text(console, f"{output}: {manifest.source} in {precision}{how}, {size:,.0f} MiB")
    if manifest.agreement:
        agreement = manifest.agreement
        print_text(
            console,
            f"agreement with float32 on {agreement.texts} texts: mean cosine {agreement.mean_cosine:.4f}, least "
            f"{agreement.least_cosine:.4f}",
        )
    if manifest.tokens_per_s:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in manifest.tokens_per_s.items())
        print_text(console, f"tokens/s on these texts: {speeds}")
    print_text(console, f"use it with model_name={output!r}")


@app.command(epilog=PRIVATE)
@with_single_options
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or folder made by `bge prepare`.")],
    seconds: Annotated[float, typer.Option(min=1, metavar="N", help="Approximate time to spend.")] = 120.0,
    *,
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Compare engines and precisions on this machine, and recommend settings."""
    from bge_integrations.cli.bench import print_report, run_bench

    progress = open_console(stderr=True)
    report = run_bench(
        model,
        seconds,
        tell=lambda text: print_text(progress, f"{text} …") if progress.is_terminal else None,
        **loading.settings(),
    )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_report(report, open_console())


for _function in (mteb, evaluate, pretrain, mine, train, make_queries, improve, embed, serve, fingerprint, check_index):
    app.command(epilog=PRIVATE)(_function)
app.add_typer(cache, name="cache")

for _command in app.registered_commands:
    # The list of commands would cut the help at 80 columns.
    _command.short_help = inspect.getdoc(_command.callback)


def _show_scores(models: Sequence[str], language: str | None, kind: str | None, *, as_json: bool) -> None:
    # The other model with published scores is an English embedder.
    is_wanted = language in (None, "en") and kind in (None, "embedder")
    scored = [model for model in scored_models() if model in models or (model == MINILM and is_wanted)]
    if as_json:
        print_json(described_scores(scored))
    else:
        print_scores(open_console(), scored)


def _require_known(option: str, wanted: str | None, known: set[str]) -> None:
    if wanted is not None and wanted not in known:
        _complain(f"{option}: {wanted!r} is unknown; choose one of {', '.join(sorted(known))}.", "red")
        raise typer.Exit(2)


def _complain(message: str, style: str) -> None:
    """Prints a message of the running command. Settings in it become the command's options."""
    name = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    commands = {
        command.callback.__name__.replace("_", "-"): command.callback
        for command in app.registered_commands
        if command.callback
    }
    options = options_of(commands[name]) if name in commands else {}
    print_text(open_console(stderr=True), f"bge: {in_options(message, options)}", style=style)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature of `warnings.showwarning`
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Prints a warning of this package as a message. Other warnings are printed with their place in the code."""
    own = category.__module__.startswith("bge_integrations")
    _complain(str(message) if own else f"{filename}:{lineno}: {category.__name__}: {message}", "yellow")


def _can_be_written() -> bool:
    """Returns whether the output can be written. It writes the end of a line as a test."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except (AttributeError, ValueError):  # no output, or one that is not a file
        return True
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Redirects the output to the null device, so that Python does not report it again at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no output, or one that is not a file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
