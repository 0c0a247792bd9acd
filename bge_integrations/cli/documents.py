"""The commands that start from documents, with their options: `bge make-queries` and `bge improve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bge_integrations.cli.options import (
    AsJson,
    Device,
    Instruction,
    Loading,
    OptionGroup,
    TrainingDevice,
    with_single_options,
)
from bge_integrations.cli.terminal import open_console, print_json

if TYPE_CHECKING:
    from bge_integrations.cli.queries import Making
    from bge_integrations.training.queries.settings import Language

__all__ = ["improve", "make_queries"]

Characters = Annotated[
    int, typer.Option("--passage-length", min=1, metavar="N", help="Characters of a passage that is cut from a text.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start without a question, also where calls are many.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute all vectors; neither use nor keep those of other runs.")
]


@dataclass(frozen=True, kw_only=True)
class Source(OptionGroup):
    """What questions are made from, and with what."""

    documents: Annotated[
        Path,
        typer.Argument(
            metavar="DOCS",
            help="Passages: a .jsonl file with text (and title, document) or of LangChain documents, a .txt file with "
            "a passage a line, or a BEIR folder. Or a folder with .txt and .md files, which are cut into passages.",
        ),
    ]
    llm: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Chat model: PROVIDER:MODEL for LangChain's init_chat_model, such as openai:gpt-4.1-mini, or "
            "MODULE:NAME for a chat model of LangChain or LlamaIndex, a function of a prompt, or a function that makes "
            "one.",
        ),
    ]
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id or folder of the model to start from.")
    ]


@dataclass(frozen=True, kw_only=True)
class Questions(OptionGroup):
    """What questions are asked for."""

    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="K=N,…",
            help="Questions of each kind for a passage; question=1,keywords=1,task=1,several=0.5 unless given.",
        ),
    ] = None
    language: Annotated[str, typer.Option(help="en, zh, or auto: that of each passage.")] = "auto"
    examples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with a question of your users on each line, for style."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Limits(OptionGroup):
    """What is kept, and how the chat model is called."""

    near: Annotated[
        float, typer.Option(min=0, max=1, metavar="N", help="Cosine from which two questions count as the same.")
    ] = 0.9
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="The start must find the passage within this rank.")] = (
        20
    )
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Calls of the chat model at once.")] = 4
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds of a call, at most.")] = 120.0


@with_single_options
def make_queries(
    *,
    source: Source,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="File for the questions, such as queries.jsonl.")
    ],
    questions: Questions,
    test: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Questions to judge by later; those like them are refused.")
    ] = None,
    limits: Limits,
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
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Make training questions from your documents with a chat model, and check them."""
    from bge_integrations.cli.queries import QueriesPlan, make

    start = {"query_instruction": instruction, "device": device, **loading.settings()}
    making = _making(source, questions, limits, start, test=test, characters=characters, keep=not no_cache)
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
    *,
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to create.")],
    test: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Your own questions to judge by; a part of the made ones unless given."),
    ] = None,
    general: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data of another kind, to see what is forgotten.")
    ] = None,
    questions: Questions,
    limits: Limits,
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
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on questions made from your documents, from the questions to a verdict."""
    from bge_integrations.cli.improve import ImprovePlan, print_improved
    from bge_integrations.cli.improve import improve as run
    from bge_integrations.cli.train_options import settings_of
    from bge_integrations.training import EmbedderTraining
    from bge_integrations.training.mining.choice import MiningSettings

    start = {"query_instruction": instruction, "device": device, **loading.settings()}
    making = _making(source, questions, limits, start, test=test, characters=characters, keep=not no_cache)
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


def _making(
    source: Source,
    questions: Questions,
    limits: Limits,
    start: dict[str, Any],
    *,
    test: Path | None,
    characters: int,
    keep: bool,
) -> Making:
    from bge_integrations.cli.queries import Making, read_examples, read_kinds_option
    from bge_integrations.settings import EncoderSettings
    from bge_integrations.training.queries import QuerySettings

    return Making(
        documents=source.documents,
        llm=source.llm,
        start=EncoderSettings(model_name=source.model, on_truncation="ignore", **start),
        settings=QuerySettings(
            kinds=read_kinds_option(questions.kinds),
            examples=read_examples(questions.examples),
            language=cast("Language", questions.language),
            **vars(limits),
        ),
        test=test,
        characters=characters,
        keep=keep,
    )
