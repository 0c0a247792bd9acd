"""What `bge demo` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bge_integrations.demo.corpus import Entry
from bge_integrations.demo.frameworks import TOP_K
from bge_integrations.demo.models import DEFAULT_MODEL, FALLBACK_MODEL, FALLBACK_PACKAGE
from bge_integrations.demo.results import Answered, DemoReport, FrameworkResult, ModelFacts

__all__ = ["print_fallback_notice", "print_header", "print_indexing", "print_report"]

_SHOWN_SIGNATURE = 40  # characters; a longer one is left out


def print_fallback_notice(console: Console) -> None:
    """Say that the default model could not be had, and what runs in its place."""
    console.print(
        f"[bold yellow]The hub can't be reached, and {DEFAULT_MODEL} is not in the cache.[/]\n"
        f"The demo runs on {FALLBACK_MODEL} from the package {FALLBACK_PACKAGE} instead: the quality below is that of "
        "MiniLM, not of BGE.\n"
    )


def print_header(
    console: Console, model: ModelFacts, indexed: int, corpus_size: int, *, one_model_in_memory: bool
) -> None:
    """Say which model runs how, and on what."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    instruction = f'"{model.query_instruction}"' if model.query_instruction else "none"
    for name, value in (
        ("model", model.name),
        ("runs on", f"{model.device}, {model.precision}, engine {model.engine}"),
        ("dimension", f"{model.dimension}"),
        ("query instruction", instruction),
        ("corpus", f"{indexed:,} of {corpus_size:,} docstrings of Python's standard library"),
        ("one model in memory", _yes(one_model_in_memory)),
    ):
        grid.add_row(name, escape(value))
    console.print(grid)
    console.print()


def print_indexing(console: Console, framework: str, texts: int) -> None:
    """Say that a framework begins to embed the corpus."""
    console.print(f"{framework}: embedding {texts:,} texts …")


def print_report(console: Console, report: DemoReport) -> None:
    """Print the questions with their answers, then the figures of both frameworks."""
    console.print()
    if report.is_labelled:
        console.print(_question_table(console, report))
        _print_differences(console, report)
    else:
        _print_own_questions(console, report)
    console.print(_summary_table(report))
    console.print(escape(f"Model: {report.model.name}"))
    console.print(f"One model in memory: {_yes(report.one_model_in_memory)}")
    console.print(f"Same ranking in both frameworks: {_yes(report.all_ranked_alike)}")


def _question_table(console: Console, report: DemoReport) -> Table:
    table = Table(title="Questions", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("question", ratio=5)
    table.add_column("first answer", ratio=4, overflow="fold")
    table.add_column("rank", no_wrap=True)
    table.add_column("right answer, if not the first", ratio=4, overflow="fold")
    right, wrong = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("yes", "no")
    for answer in report.langchain.answered:
        colour = "red" if answer.rank is None else "green" if answer.rank == 1 else "yellow"
        mark = f"[{colour}]{wrong if answer.rank is None else f'{right} {answer.rank}'}[/]"
        table.add_row(_encodable(console, answer.question), escape(answer.names[0]), mark, escape(_correction(answer)))
    return table


def _correction(answer: Answered) -> str:
    if answer.rank is None:
        return f"{min(answer.expected)} (not among the first {TOP_K})"
    return "" if answer.rank == 1 else answer.names[answer.rank - 1]


def _print_differences(console: Console, report: DemoReport) -> None:
    total = len(report.langchain.answered)
    console.print(f"Both frameworks ranked the same for {report.ranked_alike} of {total} questions.")
    for one, other in zip(report.langchain.answered, report.llama_index.answered, strict=True):
        if one.names != other.names:
            names = escape(f"{', '.join(one.names)} | {', '.join(other.names)}")
            console.print(f"  {_encodable(console, one.question)} {names}")
    console.print()


def _print_own_questions(console: Console, report: DemoReport) -> None:
    entries = {entry.name: entry for entry in report.entries}
    for one, other in zip(report.langchain.answered, report.llama_index.answered, strict=True):
        if one.names == other.names:
            console.print(_answer_table("LangChain and LlamaIndex alike", one, entries))
        else:
            console.print(_answer_table(report.langchain.framework, one, entries))
            console.print(_answer_table(report.llama_index.framework, other, entries))


def _answer_table(who: str, answer: Answered, entries: dict[str, Entry]) -> Table:
    title = f"[bold]{escape(answer.question)}[/] ({who})"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("documentation")
    for place, hit in enumerate(answer.hits, start=1):
        entry = entries[hit.name]
        name = escape(hit.name + (entry.signature if len(entry.signature) <= _SHOWN_SIGNATURE else "(…)"))
        table.add_row(str(place), f"{hit.score:.3f}", name, escape(entry.summary))
    return table


def _summary_table(report: DemoReport) -> Table:
    table = Table(title="Summary", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    results = (report.langchain, report.llama_index)
    for result in results:
        table.add_column(result.framework, justify="right")
    for name, cells in _summary_rows(report, results):
        table.add_row(name, *cells)
    return table


def _summary_rows(report: DemoReport, results: tuple[FrameworkResult, ...]) -> Iterator[tuple[str, list[str]]]:
    if report.is_labelled:
        count = len(report.langchain.answered)
        yield f"hit@1 of {count} questions", [f"{result.hit_rate(1):.1%}" for result in results]
        yield f"hit@5 of {count} questions", [f"{result.hit_rate(5):.1%}" for result in results]
        yield "MRR@5", [f"{result.mrr:.3f}" for result in results]
    yield "texts embedded and stored", [f"{result.texts:,}" for result in results]
    yield "seconds for that", [f"{result.indexing_seconds:.1f}" for result in results]
    yield "texts/s", [f"{result.texts_per_second:,.0f}" for result in results]
    yield "tokens/s", [f"{result.tokens_per_second:,.0f}" for result in results]
    yield "median question, search included", [f"{1000 * result.median_query_seconds:.1f} ms" for result in results]


def _encodable(console: Console, text: str) -> str:
    """Puts question marks for what a console can't show: some questions are Chinese, some consoles know Latin only."""
    return escape(text.encode(console.encoding, "replace").decode(console.encoding))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
