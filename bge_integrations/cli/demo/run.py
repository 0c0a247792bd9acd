"""Index the standard library's documentation through both frameworks, then ask it questions."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from typing_extensions import Unpack

from bge_integrations.cli.demo import report as show
from bge_integrations.cli.demo.bm25 import Bm25
from bge_integrations.cli.demo.corpus import WITH_SOURCES, Entry, collect
from bge_integrations.cli.demo.frameworks import (
    TOP_K,
    Hit,
    Index,
    Retrieve,
    index_with_langchain,
    index_with_llama_index,
)
from bge_integrations.cli.demo.models import Models, open_models
from bge_integrations.cli.demo.questions import QUESTIONS, Question
from bge_integrations.cli.demo.results import Answered, DemoReport, ModelFacts, SearchResult
from bge_integrations.cli.terminal import open_console
from bge_integrations.errors import SettingsError
from bge_integrations.settings import EmbedderFileOptions

__all__ = ["DEFAULT_LIMIT", "documented_questions", "run_demo", "select_entries"]

DEFAULT_LIMIT = 3000
"""Entries indexed unless told otherwise, so that both frameworks are done in minutes on two slow cores."""

_STRIDE = 18
"""Questions apart, of those whose answers are indexed first, so that few entries answer questions of many kinds."""


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
        questions: The user's own questions, to be answered instead of the labelled ones.
        limit: Entries to index; None takes `DEFAULT_LIMIT`. Labelled questions whose answers are not all among them are
            left out, as are those that this Python documents no answer to, which is then said.
        console: Where to print; None is the standard output.
        **files: Where the model's files come from and how they are read; as in `BgeEncoder`.

    Returns:
        The figures that were printed.

    Raises:
        SettingsError: No question, a blank one, or a limit below 1; or nothing to search, or no labelled question left.
        ModelNotCachedError: The model named can't be had, or neither the default nor its stand-in.
        BgeError: Whatever else loading or encoding raises.
    """
    own_questions = None if questions is None else _checked_questions(questions)
    limit = DEFAULT_LIMIT if limit is None else limit
    if limit < 1:
        raise SettingsError(f"limit={limit} leaves nothing to search; give at least 1.")
    corpus = collect()
    entries = _at_most(corpus, limit)
    if own_questions is None:
        asked, questions_said = _labelled(corpus, entries, limit)
    else:
        asked, questions_said = own_questions, "yours"
    console = console or open_console()

    models = open_models(model_name, show_progress=console.is_terminal, **files)
    if models.is_fallback:
        show.print_fallback_notice(console)
    facts = _facts(models)
    show.print_header(
        console, facts, len(entries), len(corpus), questions=questions_said, one_model_in_memory=models.is_shared
    )

    encoder = models.encoder
    tokens = int(
        encoder.backend.tokenizer.tokenize([entry.text for entry in entries], encoder.max_length).lengths.sum()
    )

    def run(framework: str, index: Callable[[], Index]) -> SearchResult:
        show.print_indexing(console, framework, len(entries))
        made = index()
        return SearchResult(
            name=framework,
            texts=len(entries),
            tokens=tokens,
            embedding_seconds=made.embedding_seconds,
            storing_seconds=made.storing_seconds,
            answered=_ask_all(made.retrieve, asked),
        )

    demo_report = DemoReport(
        model=facts,
        one_model_in_memory=models.is_shared,
        corpus_size=len(corpus),
        entries=entries,
        langchain=run("LangChain", lambda: index_with_langchain(entries, models.langchain)),
        llama_index=run(
            "LlamaIndex",
            lambda: index_with_llama_index(entries, models.llama_index, show_progress=console.is_terminal),
        ),
        bm25=_search_by_words(entries, asked) if own_questions is None else None,
    )
    show.print_report(console, demo_report)
    return demo_report


def select_entries(corpus: Sequence[Entry], limit: int) -> tuple[Entry, ...]:
    """Choose what to index: every entry that answers a labelled question, then others up to the limit.

    The choice is the same on every run, and a larger limit only adds to it.
    """
    labelled = frozenset[str]().union(*(question.answers for question in QUESTIONS))
    others = [entry for entry in corpus if entry.name not in labelled]
    random.Random(0).shuffle(others)
    wanted = {entry.name for entry in others[: max(0, limit - len(labelled))]} | labelled
    return tuple(entry for entry in corpus if entry.name in wanted)


def _at_most(corpus: Sequence[Entry], limit: int) -> tuple[Entry, ...]:
    """Choose as `select_entries` does; of what answers labelled questions, no more than the limit, by question."""
    entries = select_entries(corpus, limit)
    names = {entry.name for entry in entries}
    spread = [question for first in range(_STRIDE) for question in QUESTIONS[first::_STRIDE]]
    answers = dict.fromkeys(name for question in spread for name in sorted(question.answers) if name in names)
    kept = names if len(names) <= limit else set([*answers][:limit])
    return tuple(entry for entry in entries if entry.name in kept)


def documented_questions(corpus: Sequence[Entry]) -> list[Question]:
    """The labelled questions that the corpus answers, each with those of its answers that are there.

    A Python without its library's source files, or without some modules, lacks the others: no search could find them.
    """
    names = {entry.name for entry in corpus}
    documented = (dataclasses.replace(question, answers=question.answers & names) for question in QUESTIONS)
    return [question for question in documented if question.answers]


def _labelled(corpus: Sequence[Entry], entries: Sequence[Entry], limit: int) -> tuple[Sequence[Question], str]:
    """The labelled questions that have every answer of the corpus among the entries; and what to say of their number.

    Raises:
        SettingsError: There is none.
    """
    names = {entry.name for entry in entries}
    documented = documented_questions(corpus)
    asked = [question for question in documented if question.answers <= names]
    if not documented:
        raise SettingsError(
            f"The {len(corpus)} docstrings that this Python has answer none of the demo's questions. "
            f"{WITH_SOURCES} Or give questions of your own, with ask=…"
        )
    if not asked:
        raise SettingsError(
            f"limit={limit} leaves out answers of every one of the demo's questions; give a larger one, or none for "
            f"{DEFAULT_LIMIT}."
        )
    return asked, show.questions_asked(len(asked), len(documented), len(QUESTIONS), len(entries))


def _checked_questions(questions: list[str]) -> Sequence[Question]:
    if not questions or not all(question.strip() for question in questions):
        raise SettingsError(f"questions={questions!r}: give at least one, and none that is blank.")
    return [Question(question, frozenset(), kind=None) for question in questions]


def _facts(models: Models) -> ModelFacts:
    encoder = models.encoder
    return ModelFacts(
        name=models.label,
        device=encoder.backend.device,
        precision=encoder.backend.request.precision,
        engine=encoder.backend.engine.name,
        dimension=encoder.dimension,
        query_instruction=encoder.instruction("query").prefix,
        is_fallback=models.is_fallback,
    )


def _search_by_words(entries: Sequence[Entry], asked: Sequence[Question]) -> SearchResult:
    start = time.perf_counter()
    index = Bm25([entry.text for entry in entries])
    seconds = time.perf_counter() - start

    def retrieve(question: str) -> list[Hit]:
        return [Hit(entries[position].name, score) for position, score in index.search(question, TOP_K)]

    return SearchResult(
        name="BM25",
        texts=len(entries),
        tokens=0,
        embedding_seconds=0.0,
        storing_seconds=seconds,
        answered=_ask_all(retrieve, asked),
    )


def _ask_all(retrieve: Retrieve, questions: Sequence[Question]) -> tuple[Answered, ...]:
    """Ask one question at a time, as a user would; the first call, which warms things up, is not counted."""
    retrieve(questions[0].text)
    answered = []
    for question in questions:
        start = time.perf_counter()
        hits = retrieve(question.text)
        answered.append(Answered(question.text, question.answers, tuple(hits), time.perf_counter() - start))
    return tuple(answered)
