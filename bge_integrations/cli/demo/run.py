"""Index the standard library's docstrings through both frameworks, then ask them questions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence

from rich.console import Console
from typing_extensions import Unpack

from bge_integrations.cli.demo.corpus import WITH_SOURCES, Entry, collect
from bge_integrations.cli.demo.frameworks import Hit, Index, index_with_langchain, index_with_llama_index
from bge_integrations.cli.demo.models import open_models
from bge_integrations.cli.demo.questions import QUESTIONS, Question
from bge_integrations.cli.demo.report import print_header, print_report
from bge_integrations.cli.demo.results import Answered, DemoReport, SearchResult
from bge_integrations.cli.terminal import open_console, print_text
from bge_integrations.errors import SettingsError
from bge_integrations.settings import EmbedderFileOptions

__all__ = ["DEFAULT_LIMIT", "run_demo"]

DEFAULT_LIMIT = 3000
"""Entries indexed unless told otherwise, so that both frameworks are done in minutes on two slow cores."""


def run_demo(
    model_name: str | None = None,
    questions: list[str] | None = None,
    limit: int | None = None,
    console: Console | None = None,
    **files: Unpack[EmbedderFileOptions],
) -> DemoReport:
    """Run the demo and print what it finds.

    Args:
        model_name: Hub id or local folder. None takes the default model, or a stand-in where that can't be had, which
            is then said.
        questions: The user's own questions, to be answered instead of the demo's.
        limit: Entries to index; None takes `DEFAULT_LIMIT`. Those that answer the demo's questions come first.
        console: Where to print; None is the standard output.
        **files: Where the model's files come from and how they are read; as in `BgeEncoder`.

    Returns:
        The figures that were printed.

    Raises:
        SettingsError: No question, a blank one, a limit that is too small, or too few docstrings.
        ModelNotCachedError: The model named can't be had, or neither the default nor its stand-in.
        BgeError: Whatever else loading or encoding raises.
    """
    limit = DEFAULT_LIMIT if limit is None else limit
    if limit < 1:
        raise SettingsError(f"limit={limit} leaves nothing to search; give at least 1.")
    own = None if questions is None else _checked(questions)
    corpus = collect()
    names = {entry.name for entry in corpus}
    known = [question for question in QUESTIONS if names.issuperset(question.answers)]
    answers = {name for question in known for name in question.answers}
    if own is None:
        _check_answers(answers, limit, len(corpus))
    entries = _choose(corpus, answers, limit)
    console = console or open_console()

    models = open_models(model_name, show_progress=console.is_terminal, **files)
    print_header(console, models, len(entries), len(corpus))
    encoder = models.encoder
    tokens = encoder.backend.tokenizer.tokenize([entry.text for entry in entries], encoder.max_length)

    def run(framework: str, make_index: Callable[[], Index]) -> SearchResult:
        print_text(console, f"{framework}: embedding {len(entries):,} texts, then asking …")
        index = make_index()
        return SearchResult(
            name=framework,
            embedding_seconds=index.embedding_seconds,
            storing_seconds=index.storing_seconds,
            answered=_ask_all(index.retrieve, own or known),
        )

    report = DemoReport(
        model=models.label,
        is_fallback=models.is_fallback,
        one_model_in_memory=models.is_shared,
        is_labelled=own is None,
        entries=entries,
        tokens=int(tokens.lengths.sum()),
        langchain=run("LangChain", lambda: index_with_langchain(entries, models.langchain)),
        llama_index=run(
            "LlamaIndex",
            lambda: index_with_llama_index(entries, models.llama_index, show_progress=console.is_terminal),
        ),
    )
    print_report(console, report)
    return report


def _checked(questions: list[str]) -> list[Question]:
    if not questions:
        raise SettingsError("questions=[] asks nothing; give at least one, or None for the demo's own.")
    for place, text in enumerate(questions, start=1):
        if not text.strip():
            raise SettingsError(f"Question {place} of {len(questions)} is blank: {text!r}. Say what you look for.")
    return [Question(text) for text in questions]


def _check_answers(answers: Collection[str], limit: int, known: int) -> None:
    if not answers:
        raise SettingsError(
            f"The {known} docstrings of this Python answer none of the demo's questions. {WITH_SOURCES} Or give "
            "questions of your own, with ask=…"
        )
    if limit < len(answers):
        raise SettingsError(
            f"limit={limit} leaves out docstrings that answer the demo's questions; give at least {len(answers)}, or "
            "questions of your own, with ask=…"
        )


def _choose(corpus: Sequence[Entry], answers: Collection[str], limit: int) -> tuple[Entry, ...]:
    """Choose what to index: the answers, then others up to the limit; the same on every run."""
    shuffled = random.Random(0).sample(corpus, len(corpus))
    return tuple(sorted(shuffled, key=lambda entry: entry.name not in answers)[:limit])


def _ask_all(retrieve: Callable[[str], list[Hit]], questions: Sequence[Question]) -> tuple[Answered, ...]:
    """Ask one question at a time, as a user would; the first call, which warms things up, is not counted."""
    retrieve(questions[0].text)
    answered = []
    for question in questions:
        start = time.perf_counter()
        hits = retrieve(question.text)
        answered.append(Answered(question, tuple(hits), time.perf_counter() - start))
    return tuple(answered)
