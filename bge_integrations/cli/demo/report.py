"""What `bge demo` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_integrations.cli.demo.corpus import WITH_SOURCES, Entry
from bge_integrations.cli.demo.frameworks import TOP_K
from bge_integrations.cli.demo.models import DEFAULT_MODEL, FALLBACK_MODEL, FALLBACK_PACKAGE
from bge_integrations.cli.demo.results import Answered, DemoReport, ModelFacts, SearchResult
from bge_integrations.cli.terminal import print_fields, print_table, print_text

__all__ = ["print_fallback_notice", "print_header", "print_indexing", "print_report", "questions_asked"]

_SHOWN_QUESTIONS = 12
_SHOWN_SIGNATURE = 40  # characters; a longer one is left out


def print_fallback_notice(console: Console) -> None:
    """Say that the default model could not be had, and what runs in its place."""
    print_text(console, f"The hub can't be reached, and {DEFAULT_MODEL} is not in the cache.", style="bold yellow")
    print_text(
        console,
        f"The demo runs on {FALLBACK_MODEL} from the package {FALLBACK_PACKAGE} instead: the quality below is that of "
        "MiniLM, not of BGE.\n",
    )


def print_header(
    console: Console,
    model: ModelFacts,
    indexed: int,
    corpus_size: int,
    *,
    questions: str,
    one_model_in_memory: bool,
) -> None:
    """Say which model runs how, and on what."""
    fields = {
        "model": model.name,
        "runs on": f"{model.device}, {model.precision}, engine {model.engine}",
        "dimension": f"{model.dimension}",
        "query instruction": f'"{model.query_instruction}"' if model.query_instruction else "none",
        "corpus": f"{indexed:,} of {corpus_size:,} docstrings of Python's standard library",
        "questions": questions,
        "one model in memory": _yes(one_model_in_memory),
    }
    print_fields(console, fields, style="bold")
    print_text(console, "")


def questions_asked(asked: int, documented: int, known: int, indexed: int) -> str:
    """Say how many of the labelled questions are asked, why others are not, and what it means if they are few.

    Args:
        asked: Those that are asked.
        documented: Those that the documentation of this Python answers.
        known: All.
        indexed: The docstrings that are searched.
    """
    if asked == known:
        return f"{asked} with known answers"
    said = f"{asked} of {known}"
    if documented < known:
        said += (
            f"; {known - documented} are left out, since this Python has no docstring that answers them. {WITH_SOURCES}"
        )
    if asked < documented:
        others = "the others" if documented == known else f" {documented - asked} more"
        said += (
            f"{'; ' if documented == known else ''}{others} have right answers that are not among the {indexed:,} "
            "docstrings. Among so few, any search finds more than it would in a whole library."
        )
    return said


def print_indexing(console: Console, framework: str, texts: int) -> None:
    """Say that a framework begins to embed the corpus."""
    print_text(console, f"{framework}: embedding {_count(texts, 'text')}, then asking …")


def print_report(console: Console, report: DemoReport) -> None:
    """Print some questions with their answers, then one summary of all."""
    print_text(console, "")
    if report.is_labelled:
        _print_questions(console, report)
    else:
        _print_own_questions(console, report)
    _print_summary(console, report)


def _print_questions(console: Console, report: DemoReport) -> None:
    answered = report.langchain.answered
    stride = max(1, len(answered) // _SHOWN_QUESTIONS)
    shown = answered[::stride][:_SHOWN_QUESTIONS]
    part = f"{len(shown)} of the " if len(shown) < len(answered) else "All "
    print_text(console, f"{part}{_count(len(answered), 'question')}, with the first answer", style="bold")
    right, wrong = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("right", "wrong")
    for answer in shown:
        print_text(console, answer.question, start="  ")
        mark, colour = (right, "green") if answer.rank == 1 else (wrong, "red")
        print_text(console, f"{answer.names[0]}{_correction(answer)}", start=Text.assemble("    ", (mark, colour), " "))
    print_text(console, "")


def _correction(answer: Answered) -> str:
    if answer.rank == 1:
        return ""
    if answer.rank is None:
        return f" – right would be {min(answer.expected)}, not among the first {TOP_K}"
    return f" – right is {answer.names[answer.rank - 1]}, place {answer.rank}"


def _print_own_questions(console: Console, report: DemoReport) -> None:
    entries = {entry.name: entry for entry in report.entries}
    for one, other in zip(report.langchain.answered, report.llama_index.answered, strict=True):
        if one.names == other.names:
            _print_answers(console, "LangChain and LlamaIndex alike", one, entries)
        else:
            _print_answers(console, report.langchain.name, one, entries)
            _print_answers(console, report.llama_index.name, other, entries)


def _print_answers(console: Console, who: str, answer: Answered, entries: dict[str, Entry]) -> None:
    print_text(console, f"{answer.question} ({who})", style="bold")
    for place, hit in enumerate(answer.hits, start=1):
        entry = entries[hit.name]
        name = hit.name + (entry.signature if len(entry.signature) <= _SHOWN_SIGNATURE else "(…)")
        start = f"  {place}  {hit.score:.3f}  "
        print_text(console, name, start=start)
        print_text(console, entry.summary, start=" " * len(start))
    print_text(console, "")


def _print_summary(console: Console, report: DemoReport) -> None:
    questions, texts = len(report.langchain.answered), report.langchain.texts
    heading = f"Summary: {_count(questions, 'question')}, {_count(texts, 'docstring')}"
    print_text(console, heading, style="bold")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for result in report.results:
        table.add_column(result.name, justify="right", no_wrap=True)
    for name, cells in _summary_rows(report):
        table.add_row(name, *cells)
    print_table(console, table)
    if report.is_labelled:
        print_text(console, "hit@k: the share of questions with a right answer among the first k", start="  ")
        print_text(console, "MRR@5: the mean of 1 / the right answer's place, 0 if it is not among 5", start="  ")
        print_text(console, "BM25: a search by words, without a model, for comparison", start="  ")
    alike = f"{report.ranked_alike} of {_count(questions, 'question')}"
    print_text(console, f"Same ranking in both frameworks: {_yes(report.all_ranked_alike)} ({alike})")
    print_text(console, f"One model in memory: {_yes(report.one_model_in_memory)}")
    print_text(console, f"Model: {report.model.name}")


def _summary_rows(report: DemoReport) -> Iterator[tuple[str, list[str]]]:
    results = report.results
    if report.is_labelled:
        yield "hit@1", [f"{result.hit_rate(1):.1%}" for result in results]
        yield "hit@5", [f"{result.hit_rate(5):.1%}" for result in results]
        yield "MRR@5", [f"{result.mrr:.3f}" for result in results]
    embedded: list[tuple[str, Callable[[SearchResult], str]]] = [
        ("embedding, s", lambda result: f"{result.embedding_seconds:.1f}"),
        ("  texts/s", lambda result: f"{result.texts_per_second:,.0f}"),
        ("  tokens/s", lambda result: f"{result.tokens_per_second:,.0f}"),
    ]
    for name, figure in embedded:
        yield name, [figure(result) if result.is_of_a_model else "–" for result in results]
    yield "storing, s", [f"{result.storing_seconds:.1f}" for result in results]
    yield "median question, ms", [f"{1000 * result.median_query_seconds:.1f}" for result in results]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
