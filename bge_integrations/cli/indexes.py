"""The commands about what made an index, with their options: `bge fingerprint` and `bge check-index`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bge_integrations.cli.options import (
    AsJson,
    Computation,
    Files,
    HowToPool,
    MaxLength,
    OptionGroup,
    Revision,
    Server,
    with_single_options,
)
from bge_integrations.cli.outputs import require_writable
from bge_integrations.cli.terminal import open_console, print_fields, print_json, print_text
from bge_integrations.errors import SettingsError

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.fingerprint import Fingerprint
    from bge_integrations.indexes.check import Report

__all__ = ["check_index", "fingerprint"]

MISMATCH = 3
"""Exit status of a comparison that found a difference. 1 is an error, 2 a wrong use of the command."""

_STATES = {
    "equal": "fits: the same model, settings and vectors",
    "compatible": "fits: other files, precision or engine, but the same vectors",
    "different": "does not fit",
    "empty": "has no fingerprint and no documents, so there is nothing to compare",
}

LeastCosine = Annotated[
    float, typer.Option(min=0, max=1, metavar="N", help="Least cosine of vectors that count as the same.")
]


@dataclass(frozen=True, kw_only=True)
class Vectors(OptionGroup):
    """What vectors depend on."""

    document_instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text before each document; the model's own unless given.")
    ] = None
    max_length: MaxLength = None
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="L2 normalisation; as the model was trained unless given."),
    ] = None
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Leading dimensions to keep; all unless given.")
    ] = None
    pooling: HowToPool = None
    computation: Computation
    revision: Revision = None
    files: Files
    server: Server

    def encoder(self, model: str) -> BgeEncoder:
        """Returns an encoder with these settings."""
        from bge_integrations.encoder import BgeEncoder

        return BgeEncoder(model, **self.settings())


@with_single_options
def fingerprint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or folder made by `bge prepare`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="File to write the fingerprint to.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there already.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Fingerprint to compare with. Exit with 3 if the vectors differ."),
    ] = None,
    least_cosine: LeastCosine = 0.999,
    *,
    vectors: Vectors,
    as_json: AsJson = False,
) -> None:
    """Show what the vectors of a model depend on, and compare it with a fingerprint."""
    from bge_integrations.fingerprint import Fingerprint

    if output is not None:
        require_writable("--output", output, overwrite=force)
    before = Fingerprint.from_json(_content_of(compare)) if compare is not None else None
    found = vectors.encoder(model).fingerprint()
    if output is not None:
        output.write_text(f"{found.to_json()}\n", encoding="utf-8")
    comparison = before.compare(found, least_cosine=least_cosine) if before else None
    if as_json:
        content = found.to_dict()
        if comparison is not None:
            content |= {
                "compared": comparison.state,
                "differences": list(comparison.differences),
                "least_cosine": comparison.least_cosine,
            }
        print_json(content)
    else:
        console = open_console()
        _print_fingerprint(console, found)
        if comparison is not None:
            _print_state(console, str(compare), comparison.state, comparison.differences, comparison.least_cosine)
    if comparison is not None and comparison.state == "different":
        raise typer.Exit(MISMATCH)


@with_single_options
def check_index(
    index: Annotated[
        str,
        typer.Argument(
            metavar="INDEX",
            help="Folder of Chroma, Qdrant, LanceDB, FAISS or LlamaIndex; file of Milvus Lite; Parquet files; a "
            "fingerprint's file; postgresql://… or http://….",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Hub id or folder; unless given, what is recorded is shown."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Collection or table; the only one unless given.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="What answers at http://…: qdrant or milvus.")] = None,
    documents: Annotated[
        int, typer.Option(min=0, metavar="N", help="Stored documents to embed again and compare; 0 for none.")
    ] = 32,
    record: Annotated[
        bool, typer.Option("--record", help="Record the model in an index without a fingerprint that it fits.")
    ] = False,
    least_cosine: LeastCosine = 0.999,
    *,
    vectors: Vectors,
    as_json: AsJson = False,
) -> None:
    """Check whether a model fits a vector index. Exit with 0 if so, with 3 if not, with 1 if it can't be checked."""
    from bge_integrations.indexes.check import Model, check
    from bge_integrations.indexes.location import open_index

    if model is None and (record or vectors != Vectors.by_default()):
        # Such as a variable of a script that is empty: nothing would be compared, and the check would pass.
        raise SettingsError("options of a model were given, but no MODEL. Name it after INDEX.")
    with closing(open_index(index, collection=collection, server=server)) as opened:
        if model is None:
            _show_recorded(opened.name, opened.read(), as_json=as_json)
            return
        report = check(
            opened,
            Model.of(vectors.encoder(model)),
            least_cosine=least_cosine,
            documents=documents,
            always_documents=True,
        )
        is_recorded = record and report.recorded is None and report.state in ("equal", "compatible")
        if is_recorded:
            opened.write(report.model.to_json())
    if as_json:
        print_json(_as_json(report, is_recorded=is_recorded))
    else:
        console = open_console()
        _print_state(console, report.index, report.state, report.differences, report.least_cosine)
        if report.documents:
            print_text(console, f"{report.documents} of its documents were embedded again")
        if report.recorded is None:
            print_text(console, "the model is recorded now" if is_recorded else "it has no fingerprint")
    if report.state in ("different", "empty"):
        raise typer.Exit(MISMATCH if report.state == "different" else 1)


def _content_of(file: Path) -> str:
    from bge_integrations.errors import FingerprintError

    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FingerprintError(f"{file} can't be read: {error}.") from error


def _show_recorded(name: str, record: str | None, *, as_json: bool) -> None:
    from bge_integrations.errors import FingerprintError
    from bge_integrations.fingerprint import Fingerprint

    if record is None:
        raise FingerprintError(f"{name} has no fingerprint. Name a MODEL to compare with its documents.")
    found = Fingerprint.from_json(record)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_fingerprint(open_console(), found)


def _print_fingerprint(console: Console, found: Fingerprint) -> None:
    shown = {
        name.replace("_", " "): repr(value) if name == "document_instruction" else str(value)
        for name, value in found.to_dict().items()
        if name not in ("bge_fingerprint", "sketch", "lengths")
    }
    lengths = sorted({*found.lengths})
    shown["vector lengths"] = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    print_fields(console, shown)


def _print_state(
    console: Console, name: str, state: str, differences: tuple[str, ...], least_cosine: float | None
) -> None:
    style = {"different": "red", "empty": "yellow"}.get(state, "green")
    cosine = f" (least cosine {least_cosine:.5f})" if least_cosine is not None else ""
    print_text(console, f"{name} {_STATES[state]}{cosine}", style=style)
    for difference in differences:
        print_text(console, difference, start="- ")


def _as_json(report: Report, *, is_recorded: bool) -> dict[str, object]:
    return {
        "index": report.index,
        "state": report.state,
        "differences": list(report.differences),
        "least_cosine": report.least_cosine,
        "documents": report.documents,
        "recorded": report.recorded.to_dict() if report.recorded else None,
        "recorded_now": is_recorded,
        "model": report.model.to_dict(),
    }
