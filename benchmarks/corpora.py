"""Measures `embed_corpus` beside `embed_documents` on the same texts, and its memory with the number of rows.

The texts are the documentation of Python's standard library. Both sides use one loaded model, in turns. The side of
`embed_corpus` reads a JSONL file, and writes shards. Processor time says more than time on a busy machine. For memory,
rows of a few words are embedded by a tiny random model, each number of rows in a process of its own. Prints a table,
and saves what it measured as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet
from rich.console import Console

from benchmarks import machine
from benchmarks.command import add_minilm, add_workdir, parser_of, save
from benchmarks.distributed import Clock, summary
from benchmarks.docstrings.corpus import collect
from benchmarks.isolation import isolate
from benchmarks.table_parts import make_table, ratio_cell
from bge_integrations.corpus import embed_corpus
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import make_checkpoint

DOCUMENTS, CORPUS = "embed_documents", "embed_corpus"

_WORDS = ("river", "stone", "engine", "garden", "violin", "ledger", "harbour", "query", "vector", "index", "bread")
_PROGRAM = """
import json, sys
from benchmarks.fresh import memory_mib
from bge_integrations.corpus import embed_corpus
report = embed_corpus(*sys.argv[1:4])
print(json.dumps([report.rows, report.seconds, memory_mib()["peak_mib"]]))
"""


def measure_throughput(model: str, count: int, rounds: int, place: Path) -> dict[str, Any]:
    """Embeds the same texts by both sides in turns. Returns plain data."""
    texts = [entry.text for entry in collect()][:count]
    source = place / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    embeddings = HuggingFaceBgeEmbeddings(model_name=model, device="cpu", on_truncation="ignore")
    embeddings.embed_documents(texts[:200])
    clocks: dict[str, list[Clock]] = {DOCUMENTS: [], CORPUS: []}
    for number in range(rounds):
        for side in (DOCUMENTS, CORPUS) if number % 2 else (CORPUS, DOCUMENTS):
            shutil.rmtree(place / "vectors", ignore_errors=True)
            with Clock() as clock:
                if side == DOCUMENTS:
                    alone = np.array(embeddings.embed_documents(texts), dtype=np.float32)
                else:
                    embed_corpus(source, place / "vectors", embeddings.encoder)
                    rows = parquet.read_table(place / "vectors")
            clocks[side].append(clock)
    stored = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
    tokens = int(embeddings.encoder.count_tokens(texts).sum())
    return {
        "texts": len(texts),
        "tokens": tokens,
        "largest_difference": float(np.abs(stored - alone).max()),
        "results": {side: summary(taken, clocks[DOCUMENTS], tokens) for side, taken in clocks.items()},
    }


def measure_memory(rows: int, place: Path) -> dict[str, float]:
    """Embeds so many rows in a new process. Returns the seconds and the peak of its memory in MiB."""
    model, source, output = place / "bge-small-en-v1.5", place / "rows.jsonl", place / "vectors"
    if not model.exists():
        make_checkpoint(model, modules=("cls", "normalize"))
    chance = random.Random(0)
    with source.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"t{number} {' '.join(chance.choices(_WORDS, k=6))}"
            file.write(json.dumps({"id": f"d{number}", "text": text, "n": number}) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-c", _PROGRAM, str(source), str(output), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(output)
    return {"rows": found, "seconds": seconds, "peak_mib": peak}


def print_results(console: Console, found: dict[str, Any]) -> None:
    """Prints the tables."""
    if "throughput" in found:
        texts = found["throughput"]
        table = make_table(
            f"{texts['texts']:,} texts, {texts['tokens']:,} tokens",
            "seconds",
            "tokens/s",
            "ratio",
            "processor",
            "spread",
        )
        for name, result in texts["results"].items():
            table.add_row(
                name,
                f"{statistics.median(result['seconds']):.1f}",
                f"{result['tokens_per_s']:,.0f}",
                ratio_cell(result["ratio"]),
                ratio_cell(result["processor_ratio"]),
                f"{result['spread']:.2f}",
            )
        console.print(table)
        console.print(f"Largest difference: {texts['largest_difference']:.1e}", markup=False)
    if found["memory"]:
        table = make_table("memory of embed_corpus, tiny model", "peak MiB", "texts/s")
        for one in found["memory"]:
            table.add_row(f"{one['rows']:,} rows", f"{one['peak_mib']:.0f}", f"{one['rows'] / one['seconds']:,.0f}")
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    options = _parser().parse_args(arguments)
    isolate(options.workdir.resolve())
    found: dict[str, Any] = {"machine": machine.facts(), "memory": []}
    with tempfile.TemporaryDirectory() as name:
        if options.rounds:
            model = str(options.model.resolve())
            found["throughput"] = measure_throughput(model, options.texts, options.rounds, Path(name))
        for rows in options.memory:
            found["memory"].append(measure_memory(rows, Path(name)))
    print_results(Console(), found)
    save(found, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.corpora", __doc__)
    add_minilm(parser)
    add = parser.add_argument
    add("--texts", type=int, default=4096, help="texts of the comparison, at most")
    add("--rounds", type=int, default=5, help="how often both sides are measured; 0 for no comparison")
    add("--memory", type=int, nargs="*", default=[100_000, 1_000_000], metavar="ROWS", help="numbers of rows")
    add("--output", type=Path, default=Path("benchmarks/corpora.json"))
    add_workdir(parser, "graphs")
    return parser


if __name__ == "__main__":
    main()
