"""The commands that start from documents, with their options: `bge make-queries` and `bge improve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bge_integrations.cli.options import AsJson, Device, Instruction, Loading, TrainingDevice, with_single_options
from bge_integrations.cli.terminal import open_console, print_json

if TYPE_CHECKING:
    from bge_integrations.settings import EncoderSettings
    from bge_integrations.training.queries import QuerySettings

__all__ = ["improve", "make_queries"]

Docs = Annotated[
    Path,
    typer.Argument(
        metavar="DOCS",
        help="Passages: a .jsonl file with text (and title, document) or of LangChain documents, a .txt file with a "
        "passage a line, or a BEIR folder. Or a folder with .txt and .md files, which are cut into passages.",
    ),
]
Llm = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="Chat model: PROVIDER:MODEL for LangChain's init_chat_model, such as openai:gpt-4.1-mini, or MODULE:NAME "
        "for a chat model of LangChain or LlamaIndex, a function of a prompt, or a function that makes one.",
    ),
]
StartModel = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id or folder of the model to start from.")
]
Kinds = Annotated[
    str | None,
    typer.Option(
        metavar="K=N,…",
        help="Questions of each kind for a passage; question=1,keywords=1,task=1,several=0.5 unless given.",
    ),
]
InLanguage = Annotated[str, typer.Option(help="en, zh, or auto: that of each passage.")]
Examples = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text file with a question of your users on each line, for style.")
]
Near = Annotated[
    float, typer.Option(min=0, max=1, metavar="N", help="Cosine from which two questions count as the same.")
]
Rank = Annotated[int, typer.Option(min=1, metavar="N", help="The start must find the passage within this rank.")]
Concurrency = Annotated[int, typer.Option(min=1, metavar="N", help="Calls of the chat model at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds of a call, at most.")]
Characters = Annotated[
    int, typer.Option("--passage-length", min=1, metavar="N", help="Characters of a passage that is cut from a text.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start without a question, also where calls are many.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute all vectors; neither use nor keep those of other runs.")
]


@with_single_options
def make_queries(
    documents: Docs,
    llm: Llm,
    model: StartModel,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="File for the questions, such as queries.jsonl.")
    ],
    kinds: Kinds = None,
    language: InLanguage = "auto",
    examples: Examples = None,
    test: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Questions to judge by later; those like them are refused.")
    ] = None,
    near: Near = 0.9,
    rank: Rank = 20,
    concurrency: Concurrency = 4,
    timeout: Timeout = 120.0,
    characters: Characters = 1000,
    passages: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File for the passages; beside the output if texts were cut, unless given."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for the report with questions to read, as Markdown.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="File that keeps the answers for the next run; beside the output unless given."
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell the number of calls and tokens, and stop.")
    ] = False,
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    no_cache: NoCache = False,
    instruction: Instruction = None,
    device: Device = None,
    *,
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Make training questions from your documents with a chat model, and check them."""
    from bge_integrations.cli.queries import Making, QueriesPlan, make

    making = Making(
        documents=documents,
        llm=llm,
        start=_start(
            model,
            query_instruction=instruction,
            device=device,
            **loading.settings(),
        ),
        settings=_settings(kinds, examples, language, near=near, rank=rank, concurrency=concurrency, timeout=timeout),
        test=test,
        characters=characters,
        keep=not no_cache,
    )
    plan = QueriesPlan(
        making=making,
        output=output,
        passages=passages,
        report=report,
        answers=answers,
        only_estimate=estimate,
        yes=yes,
        overwrite=force,
        as_json=as_json,
    )
    make(plan)


@with_single_options
def improve(
    documents: Docs,
    llm: Llm,
    model: StartModel,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to create.")],
    test: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Your own questions to judge by; a part of the made ones unless given."),
    ] = None,
    general: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data of another kind, to see what is forgotten.")
    ] = None,
    kinds: Kinds = None,
    language: InLanguage = "auto",
    examples: Examples = None,
    near: Near = 0.9,
    rank: Rank = 20,
    concurrency: Concurrency = 4,
    timeout: Timeout = 120.0,
    characters: Characters = 1000,
    negatives: Annotated[int, typer.Option(min=1, metavar="N", help="Negatives of a question.")] = 7,
    relative_margin: Annotated[
        float,
        typer.Option(
            "--margin", min=0, metavar="N", help="A negative scores at least this share lower than the positive."
        ),
    ] = 0.05,
    epochs: Annotated[
        float | None, typer.Option(metavar="N", help="Passes over the questions; 1 unless given.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Questions of a batch; 32 unless given.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="R", help="Learning rate; 1e-5 unless given.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the training.")] = 0,
    yes: Yes = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    no_cache: NoCache = False,
    instruction: Instruction = None,
    device: TrainingDevice = None,
    *,
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on questions made from your documents, from the questions to a verdict."""
    from bge_integrations.cli.improve import ImprovePlan, print_improved
    from bge_integrations.cli.improve import improve as run
    from bge_integrations.cli.queries import Making
    from bge_integrations.cli.train_options import settings_of
    from bge_integrations.training import EmbedderTraining
    from bge_integrations.training.mining.choice import MiningSettings

    making = Making(
        documents=documents,
        llm=llm,
        start=_start(
            model,
            query_instruction=instruction,
            device=device,
            **loading.settings(),
        ),
        settings=_settings(kinds, examples, language, near=near, rank=rank, concurrency=concurrency, timeout=timeout),
        test=test,
        characters=characters,
        keep=not no_cache,
    )
    training = settings_of(
        None,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        negatives=negatives,
        seed=seed,
    )
    plan = ImprovePlan(
        making=making,
        output=output,
        mining=MiningSettings(
            count=negatives,
            ranks=(2, 200),
            relative_margin=relative_margin,
            absolute_margin=None,
            sampling="top",
            seed=seed,
            lexical=False,
        ),
        training=cast("EmbedderTraining", training),
        general=general,
        resume=resume,
        yes=yes,
    )
    improved = run(plan, open_console(stderr=True))
    if as_json:
        print_json(improved.to_dict())
    else:
        print_improved(improved, open_console())


def _start(model: str, **options: Any) -> EncoderSettings:  # noqa: ANN401 - fields of the settings
    from bge_integrations.settings import EncoderSettings

    return EncoderSettings(model_name=model, on_truncation="ignore", **options)


def _settings(kinds: str | None, examples: Path | None, language: str, **options: Any) -> QuerySettings:  # noqa: ANN401
    from bge_integrations.cli.queries import read_examples, read_kinds_option
    from bge_integrations.training.queries import QuerySettings

    return QuerySettings(
        kinds=read_kinds_option(kinds), examples=read_examples(examples), language=cast("Any", language), **options
    )
