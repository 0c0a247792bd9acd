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
from bge_integrations.cli.models import print_models
from bge_integrations.cli.scores import described_scores, print_scores
from bge_integrations.cli.terminal import READABLE, open_console, print_json, print_text
from bge_integrations.cli.wording import in_options, options_of
from bge_integrations.errors import BgeError
from bge_integrations.settings import description

if TYPE_CHECKING:
    from bge_integrations.backend.prepared.folder import Quantization
    from bge_integrations.prepare import PreparedPrecision
    from bge_integrations.settings import Pooling, Purpose

# Plain help: frames leave too little room for long options at 80 columns, and markup removes text in brackets.
app = typer.Typer(
    help="BGE embedding models for LangChain and LlamaIndex.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
HowToPool = Annotated[
    str | None, typer.Option(help="Pooling: cls, mean or last; as the model's files say unless given.")
]
Revision = Annotated[str | None, typer.Option(help=description("revision"))]
CacheFolder = Annotated[
    str | None, typer.Option(help="Folder for hub files; the hub's usual cache folder unless given.")
]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help=description("local_files_only"))]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help=description("trust_remote_code"))]
AllowPickleWeights = Annotated[bool, typer.Option("--allow-pickle-weights", help=description("allow_pickle_weights"))]

# The exit status of a tool that SIGPIPE ends. Windows has no such signal.
_CLOSED_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1

_PRIVATE = "A private model needs HF_TOKEN, or `hf auth login` once."


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


@app.command(epilog=_PRIVATE)
def demo(
    ask: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Your own question. Repeat the option for more questions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; BAAI/bge-small-en-v1.5 unless given.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of docstrings to index; 3000 unless given.")
    ] = None,
    pooling: HowToPool = None,
    revision: Revision = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
) -> None:
    """Search the docstrings of Python's standard library through LangChain and through LlamaIndex."""
    from bge_integrations.cli.demo.run import run_demo

    run_demo(
        model,
        ask or None,
        limit,
        open_console(),
        pooling=cast("Pooling | None", pooling),
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        allow_pickle_weights=allow_pickle_weights,
    )


@app.command(epilog=_PRIVATE)
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
    quantization: Annotated[str | None, typer.Option(help="For int8: static or dynamic.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="For int8: a text file with one of your texts on each line.")
    ] = None,
    pooling: HowToPool = None,
    revision: Revision = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model to a folder that loads offline and without torch."""
    from bge_integrations.prepare import prepare, read_calibration

    manifest = prepare(
        model,
        output,
        precision=cast("PreparedPrecision", precision),
        purpose=cast("Purpose | None", purpose),
        quantization=cast("Quantization | None", quantization),
        calibration=read_calibration(calibration) if calibration else None,
        pooling=cast("Pooling | None", pooling),
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        allow_pickle_weights=allow_pickle_weights,
    )
    if as_json:
        print_json(dataclasses.asdict(manifest))
        return
    console = open_console()
    size = sum(file.stat().st_size for file in Path(output).expanduser().iterdir() if file.is_file()) / 2**20
    print_text(console, f"{output}: {manifest.source} in {precision}, {size:,.0f} MiB")
    if manifest.agreement:
        agreement = manifest.agreement
        print_text(
            console,
            f"agreement with float32 on {agreement.texts} texts: mean cosine {agreement.mean_cosine:.4f}, least "
            f"{agreement.least_cosine:.4f}",
        )
    print_text(console, f"use it with model_name={output!r}")


@app.command(epilog=_PRIVATE)
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or folder made by `bge prepare`.")],
    seconds: Annotated[float, typer.Option(min=1, metavar="N", help="Approximate time to spend.")] = 120.0,
    pooling: HowToPool = None,
    revision: Revision = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
    as_json: AsJson = False,
) -> None:
    """Compare engines and precisions on this machine, and recommend settings."""
    from bge_integrations.cli.bench import print_report, run_bench

    progress = open_console(stderr=True)
    report = run_bench(
        model,
        seconds,
        tell=lambda text: print_text(progress, f"{text} …") if progress.is_terminal else None,
        pooling=cast("Pooling | None", pooling),
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        allow_pickle_weights=allow_pickle_weights,
    )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_report(report, open_console())


@app.command(epilog=_PRIVATE)
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
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16, int8 or auto.")] = "auto",
    engine: Annotated[str, typer.Option(help="openvino, torch, sentence-transformers or auto.")] = "auto",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder for results; mteb's own cache unless given. Tasks with a result are not run again.",
        ),
    ] = None,
    pooling: HowToPool = None,
    revision: Revision = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
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
        pooling=pooling,
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        allow_pickle_weights=allow_pickle_weights,
    )
    if as_json:
        print_json(report.to_dict())
    elif as_markdown:
        typer.echo(report.to_markdown(), nl=False)
    else:
        print_mteb(report, open_console())


@app.command(epilog=_PRIVATE)
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
    engine: Annotated[str, typer.Option(help="auto, openvino, torch or sentence-transformers.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is unless given.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of a text; the model's own limit unless given.")
    ] = None,
    pooling: HowToPool = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
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
        "cache_folder": cache_folder,
        "local_files_only": local_files_only,
        "trust_remote_code": trust_remote_code,
        "allow_pickle_weights": allow_pickle_weights,
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


@app.command(epilog=_PRIVATE)
def mine(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Training data: a .jsonl, .json, .csv or .tsv file with queries and positives, LlamaIndex's .json "
            "file, a folder of such files, or a BEIR folder.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id or folder of the encoder.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="File for the data with negatives, such as out.jsonl."),
    ],
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Passages to choose from: a .jsonl file with text (and title, document), a .txt file with a passage a "
            "line, or a BEIR folder; the passages of the data unless given.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--negatives", min=1, metavar="N", help="Negatives of a row.")] = 7,
    ranks: Annotated[str, typer.Option(metavar="A-B", help="The first and the last rank to choose from.")] = "2-200",
    relative_margin: Annotated[
        float,
        typer.Option(
            "--margin", min=0, metavar="N", help="A negative scores at least this share lower than the lowest positive."
        ),
    ] = 0.05,
    absolute_margin: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="The same as a difference of scores; both must hold.")
    ] = None,
    sampling: Annotated[str, typer.Option(help="top: the nearest; random: any of these ranks.")] = "top",
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed gives another random choice.")] = 0,
    lexical: Annotated[
        bool, typer.Option("--lexical", help="Find every second negative by words (BM25); needs bm25s.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id or folder of a reranker that scores the result.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="File for the report with rows to read, as Markdown.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Picture to draw, such as chart.png; needs matplotlib.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute everything; neither use nor keep results of other runs.")
    ] = False,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16, int8 or auto.")] = "auto",
    teacher_precision: Annotated[str, typer.Option(metavar="P", help="Precision of the reranker.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, openvino, torch or sentence-transformers.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is unless given.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of a text; the model's own limit unless given.")
    ] = None,
    pooling: HowToPool = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
    as_json: AsJson = False,
) -> None:
    """Add hard negatives to training data: passages near to a query that do not answer it."""
    from bge_integrations.cli.mine import MinePlan, read_ranks
    from bge_integrations.cli.mine import mine as run
    from bge_integrations.training.choice import MiningSettings, Sampling

    settings = MiningSettings(
        count=count,
        ranks=read_ranks(ranks),
        relative_margin=relative_margin,
        absolute_margin=absolute_margin,
        sampling=cast("Sampling", sampling),
        seed=seed,
        lexical=lexical,
    )
    options = {
        "precision": precision,
        "engine": engine,
        "device": device,
        "max_length": max_length,
        "pooling": pooling,
        "cache_folder": cache_folder,
        "local_files_only": local_files_only,
        "trust_remote_code": trust_remote_code,
        "allow_pickle_weights": allow_pickle_weights,
    }
    plan = MinePlan(
        data=data,
        model=model,
        output=output,
        settings=settings,
        corpus=corpus,
        teacher=teacher,
        teacher_precision=teacher_precision,
        report=report,
        chart=chart,
        options=options,
        overwrite=force,
        keep=not no_cache,
        as_json=as_json,
    )
    run(plan)


@app.command(epilog=_PRIVATE)
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Rows of query, pos and neg (.jsonl, .csv, or a folder of them), a .json file of LlamaIndex's, or a "
            "BEIR folder.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder to start from.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to create.")],
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the rows; 1 unless given.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Rows of a batch; 32 unless given.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="R", help="Learning rate; 1e-5 unless given.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Temperature; 0.01, or 0.02 for v1.5 models, unless given.")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Negatives of a row; 7 unless given.")
    ] = None,
    query_length: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="Tokens of a query; 64 unless given.")
    ] = None,
    passage_length: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="Tokens of a passage; 256 unless given.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="KIND", help="How the scores of the data act: kl_div or m3_kd_loss.")
    ] = None,
    guide: Annotated[str | None, typer.Option(metavar="MODEL", help="Model that tells false negatives.")] = None,
    same_source: Annotated[
        bool, typer.Option("--same-source", help="Fill a batch with rows of one file only.")
    ] = False,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Data to choose the checkpoint by; a tenth of DATA unless given."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data to judge by; a tenth of DATA unless given.")
    ] = None,
    general: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data of another kind, to see what is forgotten.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text before each query; the model's own unless given.")
    ] = None,
    prepare_as: Annotated[
        str | None,
        typer.Option("--prepare", metavar="P", help="Also make a prepared folder: float32, bfloat16 or int8."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed; 0 unless given.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is unless given.")
    ] = None,
    pooling: HowToPool = None,
    revision: Revision = None,
    cache_folder: CacheFolder = None,
    local_files_only: LocalFilesOnly = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle_weights: AllowPickleWeights = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an embedding model on your own data, and see whether it became better on held-out questions."""
    from bge_integrations.cli.train import Job, print_outcome, run_training, settings_of
    from bge_integrations.settings import EncoderSettings

    job = Job(
        data=data,
        start=EncoderSettings(
            model_name=model,
            device=device,
            query_instruction=instruction,
            pooling=cast("Pooling | None", pooling),
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            allow_pickle_weights=allow_pickle_weights,
        ),
        output=output,
        settings=settings_of(
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            negatives=negatives,
            query_length=query_length,
            passage_length=passage_length,
            distillation=teacher,
            guide=guide,
            same_source=same_source,
            seed=seed,
        ),
        validation=validation,
        test=test,
        general=general,
        prepared=prepare_as,
        resume=resume,
        report_to="tensorboard" if tensorboard else "none",
    )
    outcome = run_training(job, open_console(stderr=True))
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_outcome(outcome, open_console())


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
    commands = {command.callback.__name__: command.callback for command in app.registered_commands if command.callback}
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
