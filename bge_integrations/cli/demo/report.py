"""What `bge demo` prints: one screen of 100 columns, unless questions of the user's own take more."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from bge_integrations.cli.demo.corpus import WITH_SOURCES, Entry
from bge_integrations.cli.demo.models import DEFAULT_MODEL, FALLBACK_MODEL, Models
from bge_integrations.cli.demo.questions import QUESTIONS
from bge_integrations.cli.demo.results import Answered, DemoReport
from bge_integrations.cli.terminal import plain_table, print_fields, print_table, print_text

__all__ = ["print_header", "print_report"]

_SHOWN_SIGNATURE = 40  # characters; a longer one is left out


def print_header(console: Console, models: Models, indexed: int, known: int) -> None:
    """Say which model runs how, and on what."""
    if models.is_fallback:
        missing = f"The hub can't be reached, and {DEFAULT_MODEL} is not in the cache."
        print_text(console, missing, style="bold yellow")
        print_text(console, f"{FALLBACK_MODEL} runs instead: the quality below is that of MiniLM, not of BGE.\n")
    encoder, backend = models.encoder, models.encoder.backend
    instruction = encoder.instruction("query").prefix
    fields = {
        "model": models.label,
        "runs on": f"{backend.device}, {backend.request.precision}, engine {backend.engine.name}",
        "query instruction": f'"{instruction}"' if instruction else "none",
        "corpus": f"{indexed:,} of {known:,} docstrings of Python's standard library",
    }
    print_fields(console, fields, style="bold")
    print_text(console, "")


def print_report(console: Console, report: DemoReport) -> None:
    """Print the questions with their answers, then one summary."""
    print_text(console, "")
    if report.is_labelled:
        _print_first_answers(console, report.langchain.answered)
    else:
        _print_own_questions(console, report)
    _print_summary(console, report)


def _print_first_answers(console: Console, answered: tuple[Answered, ...]) -> None:
    print_text(console, f"{_count(len(answered), 'question')}, with the first answer of LangChain", style="bold")
    if left_out := len(QUESTIONS) - len(answered):
        missing = f"{_count(left_out, 'question')} left out: this Python has no docstrings that answer more."
        print_text(console, f"{missing} {WITH_SOURCES}", start="  ")
    right, wrong = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("right", "wrong")
    for answer in answered:
        print_text(console, answer.question.text, start="  ")
        mark, colour = (right, "green") if answer.is_right else (wrong, "red")
        correction = "" if answer.is_right else f" – right would be {answer.question.answers[0]}"
        print_text(console, f"{answer.names[0]}{correction}", start=Text.assemble("    ", (mark, colour), " "))
    print_text(console, "")


def _print_own_questions(console: Console, report: DemoReport) -> None:
    entries = {entry.name: entry for entry in report.entries}
    for one, other in zip(report.langchain.answered, report.llama_index.answered, strict=True):
        if one.names == other.names:
            _print_answers(console, "LangChain and LlamaIndex alike", one, entries)
        else:
            _print_answers(console, report.langchain.name, one, entries)
            _print_answers(console, report.llama_index.name, other, entries)


def _print_answers(console: Console, who: str, answer: Answered, entries: Mapping[str, Entry]) -> None:
    print_text(console, f"{answer.question.text} ({who})", style="bold")
    for place, hit in enumerate(answer.hits, start=1):
        entry = entries[hit.name]
        name = hit.name + (entry.signature if len(entry.signature) <= _SHOWN_SIGNATURE else "(…)")
        start = f"  {place}  {hit.score:.3f}  "
        print_text(console, name, start=start)
        print_text(console, entry.summary, start=" " * len(start))
    print_text(console, "")


def _print_summary(console: Console, report: DemoReport) -> None:
    questions, texts = len(report.langchain.answered), len(report.entries)
    heading = f"Summary: {_count(questions, 'question')}, {_count(texts, 'docstring')}"
    print_text(console, heading, style="bold")
    table = plain_table()
    table.padding = (0, 2, 0, 0)
    table.add_column("")
    for column in ("embedding, s", "texts/s", "tokens/s", "storing, s", "median question, ms"):
        table.add_column(column, justify="right")
    for result in report.results:
        figures = (
            f"{result.embedding_seconds:.1f}",
            f"{texts / result.embedding_seconds:,.0f}",
            f"{report.tokens / result.embedding_seconds:,.0f}",
            f"{result.storing_seconds:.1f}",
            f"{1000 * result.median_question_seconds:.1f}",
        )
        table.add_row(result.name, *figures)
    print_table(console, table)
    if report.is_labelled:
        right = ", ".join(f"{result.name} {result.right} of {questions}" for result in report.results)
        print_text(console, f"First answers that are right: {right}")
    print_text(console, f"Same ranking in both frameworks: {report.ranked_alike} of {_count(questions, 'question')}")
    print_text(console, f"One model in memory: {'yes' if report.one_model_in_memory else 'no'}")
    print_text(console, f"Model: {report.model}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
