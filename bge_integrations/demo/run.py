"""Index the standard library's documentation through both frameworks, then ask it questions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from bge_integrations.demo import report as show
from bge_integrations.demo.corpus import Entry, collect
from bge_integrations.demo.frameworks import Retrieve, index_with_langchain, index_with_llama_index
from bge_integrations.demo.models import Models, open_models
from bge_integrations.demo.questions import QUESTIONS, Question
from bge_integrations.demo.results import Answered, DemoReport, FrameworkResult, ModelFacts
from bge_integrations.errors import SettingsError

__all__ = ["DEFAULT_LIMIT", "run_demo", "select_entries"]

DEFAULT_LIMIT = 3000
"""Entries indexed unless told otherwise, so that both frameworks are done in minutes on two slow cores."""


def run_demo(
    model_name: str | None = None,
    questions: list[str] | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> DemoReport:
    """Run the demo and print what it finds.

    Args:
        model_name: Hub id or local folder. None takes the default model, or a stand-in where that can't be had, which
            is then said.
        questions: The user's own questions, to be answered instead of the labelled ones.
        limit: Entries to index; None takes `DEFAULT_LIMIT`. Those that answer a labelled question are always among
            them, so there may be more.
        console: Where to print; None is the standard output.

    Returns:
        The figures that were printed.

    Raises:
        SettingsError: No question, a blank one, or a limit below 1.
        ModelNotCachedError: The model named can't be had, or neither the default nor its stand-in.
        BgeError: Whatever else loading or encoding raises.
    """
    asked = _checked_questions(questions)
    limit = DEFAULT_LIMIT if limit is None else limit
    if limit < 1:
        raise SettingsError(f"limit={limit} leaves nothing to search; give at least 1.")
    console = console or Console()

    models = open_models(model_name, show_progress=console.is_terminal)
    if models.is_fallback:
        show.print_fallback_notice(console)
    facts = _facts(models)
    corpus = collect()
    entries = select_entries(corpus, limit)
    show.print_header(console, facts, len(entries), len(corpus), one_model_in_memory=models.is_shared)

    encoder = models.encoder
    tokens = int(
        encoder.backend.tokenizer.tokenize([entry.text for entry in entries], encoder.max_length).lengths.sum()
    )

    def run(framework: str, index: Callable[[], Retrieve]) -> FrameworkResult:
        show.print_indexing(console, framework, len(entries))
        start = time.perf_counter()
        retrieve = index()
        seconds = time.perf_counter() - start
        return FrameworkResult(framework, len(entries), tokens, seconds, _ask_all(retrieve, asked))

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
        is_labelled=questions is None,
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


def _checked_questions(questions: list[str] | None) -> Sequence[Question]:
    if questions is None:
        return QUESTIONS
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


def _ask_all(retrieve: Retrieve, questions: Sequence[Question]) -> tuple[Answered, ...]:
    """Ask one question at a time, as a user would; the first call, which warms things up, is not counted."""
    retrieve(questions[0].text)
    answered = []
    for question in questions:
        start = time.perf_counter()
        hits = retrieve(question.text)
        answered.append(Answered(question.text, question.answers, tuple(hits), time.perf_counter() - start))
    return tuple(answered)
