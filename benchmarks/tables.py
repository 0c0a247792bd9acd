"""Prints what was measured, from the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.contenders import BASELINE, REFERENCE
from benchmarks.shares import SHARES, shares_of
from benchmarks.table_parts import make_table, print_left_out, ratio_cell

Json = Mapping[str, Any]


def print_results(console: Console, results: Json) -> None:
    """Prints a table for each part of each model."""
    machine = results["machine"]
    instructions = ", ".join(machine["instructions"])
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {instructions}; "
        f"{results['rounds']} rounds, profile {results['profile']}",
        highlight=False,
    )
    device = results.get("device", "cpu")
    if device != "cpu":
        console.print(f"{machine['devices'][device]}, on which float32 is computed without TF32", highlight=False)
    for name, measured in results["shapes"].items():
        shape = measured["shape"]
        console.rule(
            f"[bold]{escape(name)}[/]: {shape['layers']} layers, width {shape['width']}, {measured['weights']} weights"
        )
        for part, print_part in _PRINTERS.items():
            if measured.get(part):
                print_part(console, measured)
        print_left_out(console, measured.get("left_out", {}))


def _print_contenders(console: Console, measured: Json) -> None:
    table = _table(
        measured,
        f"Vectors, compared with those of {measured.get('baseline', REFERENCE)}",
        "mean cosine",
        "least cosine",
    )
    for name, contender in measured["contenders"].items():
        table.add_row(name, f"{contender['mean_cosine']:.6f}", f"{contender['least_cosine']:.6f}")
    console.print(table)
    for name, contender in measured["contenders"].items():
        if cost := contender.get("hand_over"):
            console.print(
                f"{name} runs in another process: {cost['query_ms']:.2f} ms of each query, and "
                f"{cost['part_of_documents']:.2%} of the time of documents, is the way there and back.",
                style="dim",
                highlight=False,
            )


def _print_throughput(console: Console, measured: Json) -> None:
    for mix, cell in measured["throughput"].items():
        texts = cell["texts"]
        table = _table(
            measured,
            f"Throughput, {mix} texts: mean {texts['mean']:.0f} tokens, p95 {texts['p95']:.0f}; "
            f"a contender that is slow gets fewer of the {texts['texts']:,}",
            *("tokens/s", "documents/s", "ratio", "spread", "texts"),
        )
        for name, result in _fastest_first(cell["results"], "tokens_per_s", descending=True):
            table.add_row(
                name,
                f"{result['tokens_per_s']:,.0f}",
                f"{result['documents_per_s']:,.1f}",
                ratio_cell(result["ratio"]),
                _spread(result),
                f"{result['texts']:,}",
            )
        console.print(table)
        _print_noise(console, cell)


def _print_latency(console: Console, measured: Json) -> None:
    part = measured["latency"]
    table = _table(
        measured, f"Latency of a query, mean {part['texts']['mean']:.0f} tokens", "p50 ms", "p95 ms", "ratio", "spread"
    )
    for name, result in _fastest_first(part["results"], "p50_ms"):
        table.add_row(
            name,
            f"{result['p50_ms']:.1f}",
            f"{result['p95_ms']:.1f}",
            ratio_cell(result["ratio"]),
            _spread(result),
        )
    console.print(table)
    _print_noise(console, part)


def _print_load(console: Console, measured: Json) -> None:
    part = measured["load"]
    table = _table(
        measured,
        f"Many callers: queries/s from {part['threads']} threads and {part['coroutines']} coroutines; a query while "
        "documents are embedded, and what of its speed alone that keeps; how late an event loop came back",
        *("threads", "ratio", "coroutines", "ratio", "p50 ms", "p95 ms", "ratio", "kept", "lag ms"),
    )
    for name, result in _fastest_first(part["results"], "query_p95_ms"):
        table.add_row(
            name,
            f"{result['threads_per_s']:,.0f}",
            ratio_cell(result["threads_ratio"]),
            f"{result['coroutines_per_s']:,.0f}",
            ratio_cell(result["coroutines_ratio"]),
            f"{result['query_p50_ms']:.1f}",
            f"{result['query_p95_ms']:.1f}",
            ratio_cell(result["ratio"]),
            f"{result['kept']:.0%}",
            f"{result['worst_lag_ms']:.0f}",
        )
    console.print(table)
    _print_noise(console, part)


def _print_cold(console: Console, measured: Json) -> None:
    part = measured["cold"]
    table = _table(
        measured, "Cold start: from the start of a process to its first vector", "s", "ratio", "peak MiB", "spread"
    )
    for name, result in _fastest_first(part["results"], "median_s"):
        table.add_row(
            name,
            f"{result['median_s']:.2f}",
            ratio_cell(result["ratio"]),
            f"{result['median_peak_mib']:,.0f}",
            _spread(result),
        )
    console.print(table)
    print_left_out(console, part["left_out"], "cold start, ")
    _print_noise(console, part)


def _print_memory(console: Console, measured: Json) -> None:
    part = measured["memory"]
    table = _table(
        measured,
        "Memory of a process with the LangChain and the LlamaIndex adapter",
        "MiB",
        "part of theirs",
        "peak MiB",
    )
    for label, result in part["results"].items():
        table.add_row(label, f"{result['rss_mib']:,.0f}", ratio_cell(result["ratio"]), f"{result['peak_mib']:,.0f}")
    console.print(table)
    print_left_out(console, part["left_out"], "memory, ")


def _print_limit(console: Console, measured: Json) -> None:
    part = measured["limit"]
    by_precision = part["peaks"]
    peaks = _table(measured, "The machine's peak in GFLOP/s, at the shapes of this model's layers", *by_precision)
    for product in next(iter(by_precision.values())):
        best = [found[product] for found in by_precision.values()]
        peaks.add_row(product, *(f"{peak['flops_per_s'] / 1e9:,.0f} ({peak['kernel']})" for peak in best))
    console.print(peaks)
    for mix, limit in part["mixes"].items():
        tokens = limit["tokens_per_s"]
        table = _table(
            measured,
            f"Part of the limit achieved, {mix} texts. Limit in tokens/s, for naive "
            f"{limit['flops_a_token'] / 1e6:,.1f} MFLOP a token: "
            + ", ".join(f"{precision} {limit:,.0f}" for precision, limit in tokens.items()),
            "achieved",
        )
        for name, achieved in sorted(limit["achieved"].items(), key=lambda item: -item[1]):
            table.add_row(name, f"{achieved:.0%}")
        console.print(table)
    _print_noise(console, part)


def _print_shares(console: Console, measured: Json) -> None:
    table = _table(
        measured,
        "Speed left on the way to a user, mixed texts, in thousand tokens/s",
        *("products", "engine alone", "whole call", *SHARES),
    )
    for name, rates in _fastest_first(measured["shares"], "engine", descending=True):
        found = shares_of(rates)
        table.add_row(
            name,
            *(f"{rates[key] / 1000:,.0f}" if key in rates else "–" for key in ("products", "engine", "call")),
            *(f"{found[title]:.0%}" if title in found else "–" for title in SHARES),
        )
    console.print(table)


_PRINTERS = {
    "contenders": _print_contenders,
    "throughput": _print_throughput,
    "latency": _print_latency,
    "load": _print_load,
    "cold": _print_cold,
    "memory": _print_memory,
    "limit": _print_limit,
    "shares": _print_shares,
}


def _table(measured: Json, title: str, *columns: str) -> Table:
    ratio = f"ratio to {measured.get('baseline', BASELINE)}"
    return make_table(title, *(ratio if column == "ratio" else column for column in columns))


def _fastest_first(results: Json, key: str, *, descending: bool = False) -> list[tuple[str, Json]]:
    return sorted(results.items(), key=lambda item: float(item[1][key]), reverse=descending)


def _spread(result: Json) -> str:
    return f"{result['spread']:.2f}" if len(result["seconds"]) > 1 else "–"


def _print_noise(console: Console, part: Json) -> None:
    noise = part["noise"]
    style = "bold red" if noise["noisy"] else "dim"
    console.print(
        f"Noise: {noise['verdict']} (reference {noise['reference_spread']:.2f}).\n", style=style, markup=False
    )
