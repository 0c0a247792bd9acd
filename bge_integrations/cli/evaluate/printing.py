"""Shows what `bge evaluate` found: as a table with sentences, as JSON, or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from bge_integrations.cli.evaluate.combinations import Combination
from bge_integrations.cli.evaluate.run import Results
from bge_integrations.cli.terminal import plain_table, print_table, print_text
from bge_integrations.evaluation.report import RetrievalReport

__all__ = ["as_json", "print_results", "to_markdown"]

_WORST_IN_JSON = 10
_LONGEST_INSTRUCTION = 24
_TEXT_COLUMNS = ("model", "precision", "output", "instruction", "reranker")


def print_results(results: Results, console: Console, *, worst: int) -> None:
    """Prints the table, the comparisons in words, the groups, and the queries that lost most."""
    data = results.data
    print_text(console, f"{data.name}: {len(data.queries):,} queries, {len(data.corpus):,} documents\n", style="bold")
    _print_rows(console, _rows(results))
    print_text(
        console, "\ncut: texts that are longer than the model reads; tokens/s: kept = computed by an earlier run"
    )
    if data.groups and results.runs:
        print_text(console, f"\n{results.metrics[0]} by group, in brackets the number of queries\n")
        _print_rows(console, _group_rows(results))
    for comparison in results.comparisons:
        failed = comparison in results.failed
        print_text(console, f"\n{comparison.in_words()}", style="red" if failed else "")
        for query, difference in comparison.worst(worst):
            print_text(console, f"{query}: {data.queries[query]}", start=f"  {difference:+.3f}  ")


def to_markdown(results: Results) -> str:
    """Returns tables and comparisons as Markdown."""
    data = results.data
    parts = [
        f"**{data.name}**: {len(data.queries):,} queries, {len(data.corpus):,} documents",
        _markdown_table(_rows(results)),
    ]
    if data.groups and results.runs:
        parts += [f"{results.metrics[0]} by group", _markdown_table(_group_rows(results))]
    parts += ["\n".join(f"- {comparison.in_words()}" for comparison in results.comparisons)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Returns one document: the data, a run for each combination, and the comparisons."""
    data, main = results.data, results.metrics[0]
    return {
        "data": {
            "name": data.name,
            "digest": data.digest,
            "queries": len(data.queries),
            "documents": len(data.corpus),
            "groups": sorted(set((data.groups or {}).values())),
        },
        "metric": main,
        "runs": [
            {
                "name": report.name,
                "model": one.model,
                "precision": _precision(one, report),
                "instruction": report.settings.get("searcher", {}).get("query_instruction"),
                "output": one.output,
                "reranker": one.reranker,
                "engine": report.settings.get("searcher", {}).get("engine"),
                "device": report.settings.get("searcher", {}).get("device"),
                "metrics": report.metrics,
                "interval": list(report.interval(main)),
                "groups": report.by_group(main),
                "seconds": report.seconds,
                "tokens": report.tokens,
                "tokens_per_second": report.tokens_per_second,
                "truncated": report.truncated,
                "versions": dict(report.versions),
            }
            for one, report in results.runs.items()
        ],
        "comparisons": [
            {
                **{key: value for key, value in comparison.to_dict().items() if key != "differences"},
                "worst": [list(pair) for pair in comparison.worst(_WORST_IN_JSON)],
                "accepted": comparison not in results.failed,
            }
            for comparison in results.comparisons
        ],
    }


def _rows(results: Results) -> list[dict[str, str]]:
    runs = results.runs
    has_output = any(one.output != "dense" for one in runs)
    has_reranker = any(one.reranker for one in runs)
    rows = []
    for one, report in runs.items():
        main, *others = results.metrics
        low, high = report.interval(main)
        row = {"model": results.labels.get(one.model or "", "candidates"), "precision": _precision(one, report) or "–"}
        row |= {"output": one.output} if has_output else {}
        row |= {"instruction": _instruction(one, report)}
        row |= {"reranker": results.labels.get(one.reranker or "", "none")} if has_reranker else {}
        row |= {main: f"{report.metrics[main]:.4f}", "95 % interval": f"{low:.4f} – {high:.4f}"}
        row |= {metric: f"{report.metrics[metric]:.4f}" for metric in others}
        row |= {"cut": "?" if report.truncated is None else f"{report.truncated:,}", "tokens/s": _speed(report)}
        rows.append(row)
    return rows


def _group_rows(results: Results) -> list[dict[str, str]]:
    metric = results.metrics[0]
    some = next(iter(results.runs.values()))
    return [
        {"run": report.name}
        | {
            f"{group} ({len(some.values(metric, group))})": f"{mean:.4f}"
            for group, mean in report.by_group(metric).items()
        }
        for report in results.runs.values()
    ]


def _precision(one: Combination, report: RetrievalReport) -> str | None:
    found: str | None = report.settings.get("searcher", {}).get("precision")
    return found if one.model else None


def _instruction(one: Combination, report: RetrievalReport) -> str:
    used: str = report.settings.get("searcher", {}).get("query_instruction") or ""
    if not used:
        return "none"
    if one.instruction is None:
        return "default"
    return repr(used if len(used) <= _LONGEST_INSTRUCTION else f"{used[:_LONGEST_INSTRUCTION]}…")


def _speed(report: RetrievalReport) -> str:
    if report.tokens == 0:
        return "kept"
    return "–" if report.tokens_per_second is None else f"{report.tokens_per_second:,.0f}"


def _print_rows(console: Console, rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        return
    table = plain_table()
    for name in rows[0]:
        table.add_column(name, no_wrap=True, justify="left" if name in (*_TEXT_COLUMNS, "run") else "right")
    for row in rows:
        table.add_row(*row.values())
    print_table(console, table)


def _markdown_table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join([_line(rows[0]), _line("---" for _ in rows[0]), *(_line(row.values()) for row in rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
