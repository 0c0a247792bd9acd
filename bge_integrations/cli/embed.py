"""The command `bge embed`, with its options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bge_integrations.cli.options import AsJson, Computation, Loading, Server, Threads, TokensRead, with_single_options
from bge_integrations.cli.terminal import open_console, print_json, print_text
from bge_integrations.errors import SettingsError

if TYPE_CHECKING:
    from bge_integrations.catalogue.instructions import Role
    from bge_integrations.corpus import CorpusReport
    from bge_integrations.corpus.plan import Dtype

__all__ = ["embed"]

_WORKER = re.compile(r"(\d+)/(\d+)")


@with_single_options
def embed(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A .jsonl, .csv, .tsv or .parquet file, or a folder of them; a BEIR folder; a folder of .txt and .md "
            "files; a folder of the library datasets.",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Hub id, folder, or folder made by `bge prepare`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to make, or to go on with.")],
    chunk: Annotated[bool, typer.Option("--chunk", help="Cut texts into passages that the model takes whole.")] = False,
    text_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Column with texts; title and text unless given. Repeat the option to join columns."
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with ids; _id or id unless given.")
    ] = None,
    role: Annotated[str, typer.Option(help="Role of the texts: document, query or symmetric.")] = "document",
    dtype: Annotated[str, typer.Option(help="Type of the stored numbers: float32 or float16.")] = "float32",
    reject: Annotated[
        bool, typer.Option("--reject", help="Put broken rows into rejected.jsonl, instead of stopping at the first.")
    ] = False,
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="This worker's number, and the number of workers that share FOLDER.")
    ] = "1/1",
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows of a file, at most; 16384 unless given.")
    ] = None,
    *,
    computation: Computation,
    max_length: TokensRead = None,
    threads: Threads = None,
    loading: Loading,
    server: Server,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus into Parquet files. A run that was killed goes on where it was."""
    from bge_integrations.corpus import embed_corpus
    from bge_integrations.corpus.job import ROWS_PER_SHARD
    from bge_integrations.settings import EncoderSettings

    report = embed_corpus(
        path,
        output,
        EncoderSettings(
            model_name=model,
            max_length=max_length,
            threads=threads,
            **computation.settings(),
            **loading.settings(),
            **server.settings(),
        ),
        role=cast("Role", role),
        dtype=cast("Dtype", dtype),
        chunk=chunk,
        text_column=text_column or None,
        id_column=id_column,
        reject=reject,
        worker=_worker(worker),
        rows_per_shard=rows_per_shard or ROWS_PER_SHARD,
        show_progress=open_console(stderr=True).is_terminal,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _worker(text: str) -> tuple[int, int]:
    found = _WORKER.fullmatch(text)
    if found is None:
        raise SettingsError(f"worker={text!r} is no worker; the first of four is 1/4.")
    return int(found[1]), int(found[2])


def _print(report: CorpusReport) -> None:
    console = open_console()
    print_text(
        console,
        f"{report.output}: {report.rows:,} rows with {report.texts:,} different texts in {report.shards:,} files",
    )
    if report.rejected:
        print_text(console, f"{report.rejected:,} broken rows are in {report.output / '_corpus' / 'rejected.jsonl'}")
    if report.computed:
        print_text(
            console,
            f"computed here: {report.computed:,} texts of {report.tokens:,} tokens in {report.seconds:,.0f} s, "
            f"{report.computed / report.seconds:,.0f} texts/s, {report.tokens / report.seconds:,.0f} tokens/s",
        )
    print_text(console, f"use them with StoredVectors({str(report.output)!r})")
