"""The commands that measure models on data, with their options: `bge mteb` and `bge evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bge_integrations.cli.options import (
    AsJson,
    Device,
    Engine,
    EngineOfMany,
    Files,
    HowToPool,
    Loading,
    MaxLength,
    Precision,
    with_single_options,
)
from bge_integrations.cli.terminal import open_console, print_json

__all__ = ["evaluate", "mteb"]


@with_single_options
def mteb(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or folder made by `bge prepare`.")],
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help='"MTEB(eng, v1)" or "MTEB(cmn, v1)"; by the language of the model unless given.'
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these tasks, by mteb's names, separated by commas.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with local data instead of the hub: one folder a task, such as STS12/test.jsonl; train.jsonl "
            "beside it for classification; a BEIR folder for retrieval. All tasks in it, unless --tasks is given.",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Instructions: published (as the model's authors evaluated it), always (every query), never."
        ),
    ] = "published",
    precision: Precision = "auto",
    engine: Engine = "auto",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder for results; mteb's own cache unless given. Tasks with a result are not run again.",
        ),
    ] = None,
    *,
    loading: Loading,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of a table.")] = False,
) -> None:
    """Run tasks of MTEB or C-MTEB, and show the scores beside the published ones."""
    from bge_integrations.cli.mteb import print_mteb, run

    report = run(
        model,
        open_console(stderr=True),
        benchmark=benchmark,
        tasks=tasks,
        data=data,
        policy=policy,
        results=output,
        precision=precision,
        engine=engine,
        **loading.settings(),
    )
    if as_json:
        print_json(report.to_dict())
    elif as_markdown:
        typer.echo(report.to_markdown(), nl=False)
    else:
        print_mteb(report, open_console())


@with_single_options
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A BEIR folder, a folder of FlagEmbedding's, a .json file of LlamaIndex's, or a .jsonl file with "
            "query, pos and neg.",
        ),
    ],
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Hub id or folder. Repeat the option for more models.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(metavar="P,…", help="Precisions, such as float32,int8; auto unless given.")
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="default, none, or a text before each query. Repeat the option for more."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="O,…", help="Of bge-m3: dense, sparse, colbert or mixed; dense unless given."),
    ] = None,
    reranker: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Hub id or folder of a reranker, or none. Repeat the option for more."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME@K",
            help="ndcg, recall, precision, mrr, map or hit; the first is compared. ndcg@10 unless given.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The split whose grades are used.")] = "test",
    baseline: Annotated[Path | None, typer.Option(help="A file of --save to compare with.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Exit with 1 if the metric drops by more than this.")
    ] = None,
    significant: Annotated[
        bool, typer.Option("--significant", help="With --max-drop: only if the drop is hardly chance (p < 0.05).")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="File for the reports, as JSON.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Picture to draw, such as chart.png; needs matplotlib.")] = None,
    worst: Annotated[int, typer.Option(min=0, metavar="N", help="Show the N queries that lost most.")] = 0,
    depth: Annotated[int, typer.Option(min=1, metavar="N", help="Documents to find for a query.")] = 100,
    rerank_depth: Annotated[int, typer.Option(min=1, metavar="N", help="Documents that a reranker orders.")] = 100,
    reranker_precision: Annotated[str, typer.Option(metavar="P", help="Precision of the rerankers.")] = "auto",
    ignore_identical_ids: Annotated[
        bool, typer.Option("--ignore-identical-ids", help="Leave out the document whose id is that of the query.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute everything; neither use nor keep results of other runs.")
    ] = False,
    engine: EngineOfMany = "auto",
    device: Device = None,
    max_length: MaxLength = None,
    pooling: HowToPool = None,
    *,
    files: Files,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of a table.")] = False,
) -> None:
    """Measure retrieval on your own data: every combination of models, precisions, instructions and rerankers."""
    from bge_integrations.cli.evaluate import Gate, Plan, Shown, combine
    from bge_integrations.cli.evaluate import evaluate as run

    names = [name.strip() for given in metric or ["ndcg@10"] for name in given.split(",")]
    options = {
        "engine": engine,
        "device": device,
        "max_length": max_length,
        "pooling": pooling,
        **files.settings(),
    }
    plan = Plan(
        combinations=combine(model or [], precision or [], instruction or [], output or [], reranker or []),
        metrics=list(dict.fromkeys(names)),
        options=options,
        reranker_precision=reranker_precision,
        depth=depth,
        rerank_depth=rerank_depth,
        ignore_identical_ids=ignore_identical_ids,
        baseline=baseline,
        gate=Gate(max_drop, significant),
    )
    shown = Shown(style="json" if as_json else "markdown" if markdown else "table", worst=worst, save=save, chart=chart)
    is_accepted = run(data, split, plan, shown, keep=not no_cache)
    if not is_accepted:
        raise typer.Exit(1)
