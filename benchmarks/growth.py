"""Measures how cost grows: with the number of texts, with their length, with the threads that ask, and in memory.

Everything has random weights. The number of texts, threads and memory are measured on two layers of width 64, where the
package's own part is largest. Lengths are measured on the shape of bge-small-en with 8192 positions. Texts are distinct
and synthetic. A straight line on logarithmic axes has an exponent: 1 is proportional growth, 0 none. Beside seconds
there is processor time, which says more on a busy machine. Prints tables; saves JSON, Markdown and a chart.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import machine
from benchmarks.command import add_workdir, parser_of, save
from benchmarks.fresh import memory_mib, own_memory_mib
from benchmarks.growth_report import draw, print_results, write_markdown
from benchmarks.isolation import isolate
from benchmarks.shapes import SHAPES, checkpoint
from benchmarks.stats import growth_exponent, interleaved, percentile
from bge_integrations import BgeEncoder
from bge_integrations.backend.machine.cpu import usable_cores
from bge_integrations.cli.bench.limit import flops_a_token
from bge_integrations.langchain import HuggingFaceBgeEmbeddings

PARTS = ("texts", "length", "threads", "memory")
ARRAY, FILE, LISTS = "list to array", "generator to file", "embed_documents"
IN_ARRAY, IN_MEMMAP, IN_FILE = "to a new array", "to a memmap", "to a file"

_WORDS = ("river", "stone", "engine", "garden", "violin", "ledger", "harbour", "query", "vector", "index", "bread")
_PROGRAM = """
import json, sys
from benchmarks.growth import embed_in_this_process
print(json.dumps(embed_in_this_process(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])))
"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much is measured.

    Attributes:
        counts: Numbers of texts.
        most_in_lists: Greatest number of texts whose vectors become lists of floats.
        shape: The model for lengths.
        lengths: Tokens of a text.
        threads: Numbers of threads.
        queries: Queries of all threads together.
        memory: Numbers of texts for memory.
        rounds: How often each point is measured.
        seconds: A point that takes longer is measured once.
    """

    counts: tuple[int, ...]
    most_in_lists: int
    shape: str
    lengths: tuple[int, ...]
    threads: tuple[int, ...]
    queries: int
    memory: tuple[int, ...]
    rounds: int
    seconds: float


PROFILES = {
    "full": Profile(
        counts=(1, 10, 100, 1000, 10_000, 100_000, 1_000_000),
        most_in_lists=1_000_000,
        shape="small-en",
        lengths=tuple(2**power for power in range(3, 14)),
        threads=(1, 2, 4, 8, 16, 32, 64),
        queries=6400,
        memory=(10_000, 30_000, 100_000, 300_000, 1_000_000),
        rounds=5,
        seconds=20.0,
    ),
    "quick": Profile(
        counts=(1, 100, 1000),
        most_in_lists=100,
        shape="tiny",
        lengths=(8, 64, 512),
        threads=(1, 4),
        queries=64,
        memory=(2000,),
        rounds=1,
        seconds=1.0,
    ),
}


def short_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Yields distinct texts of some ten tokens, the same in every run."""
    chance = random.Random(seed)
    for number in range(count):
        yield f"{number} {' '.join(chance.choices(_WORDS, k=6))}"


def text_of(tokens: int, number: int) -> str:
    """Returns a text of so many tokens for the vocabulary of the English BGE models; numbers give other texts."""
    chance = random.Random(number)
    return " ".join(chance.choices(_WORDS, k=tokens - 2))


def measure_texts(model: str, profile: Profile, place: Path) -> list[dict[str, Any]]:
    """Encodes more and more texts, in three ways. Returns a row for each number."""
    embeddings = HuggingFaceBgeEmbeddings(model_name=model, device="cpu")
    encoder = embeddings.encoder
    encoder.encode_documents(list(short_texts(min(1000, max(profile.counts)))))

    def ways_of(count: int) -> dict[str, Callable[[], object]]:
        texts = list(short_texts(count))
        ways: dict[str, Callable[[], object]] = {
            ARRAY: lambda: encoder.encode_documents(texts),
            FILE: lambda: encoder.encode_documents(iter(texts), output=place / "vectors.npy"),
        }
        if count <= profile.most_in_lists:
            ways[LISTS] = lambda: embeddings.embed_documents(texts)
        return ways

    return _measured("texts", profile.counts, ways_of, profile)


def measure_length(model: str, profile: Profile) -> list[dict[str, Any]]:
    """Encodes one text of more and more tokens. Returns a row for each length, with FLOPs by arithmetic."""
    numbers = itertools.count()
    with BgeEncoder(model, device="cpu", max_length=max(profile.lengths), on_truncation="error") as encoder:

        def ways_of(tokens: int) -> dict[str, Callable[[], object]]:
            _require(int(encoder.count_tokens([text_of(tokens, 0)])[0]), tokens)
            return {"one text": lambda: encoder.encode_documents([text_of(tokens, next(numbers))])}

        ways_of(profile.lengths[0])["one text"]()
        rows = _measured("tokens", profile.lengths, ways_of, profile)
    for row in rows:
        row["flops"] = row["tokens"] * flops_a_token(SHAPES[profile.shape].encoder, row["tokens"])
    return rows


def _require(found: int, wanted: int) -> None:
    if found != wanted:
        raise AssertionError(f"a text has {found} tokens, not {wanted}")


def _measured(
    name: str, sizes: Sequence[int], ways_of: Callable[[int], dict[str, Callable[[], object]]], profile: Profile
) -> list[dict[str, Any]]:
    """Measures each way at each size, in turns."""
    rows: dict[int, dict[str, Any]] = {size: {name: size, "ways": {}} for size in sizes}
    for _, order in interleaved(sizes, profile.rounds):
        for size in order:
            found = rows[size]["ways"]
            if any(way["seconds"][0] > profile.seconds for way in found.values()):
                continue
            for label, work in ways_of(size).items():
                way = found.setdefault(label, {"seconds": [], "processor_seconds": []})
                start, used = time.perf_counter(), time.process_time()
                work()
                way["processor_seconds"].append(time.process_time() - used)
                way["seconds"].append(time.perf_counter() - start)
    for row in rows.values():
        for way in row["ways"].values():
            way["median"] = statistics.median(way["seconds"])
            way["processor_median"] = statistics.median(way["processor_seconds"])
    return list(rows.values())


def measure_threads(model: str, profile: Profile) -> list[dict[str, Any]]:
    """Lets more and more threads share the same number of queries. Returns a row for each number of threads."""
    rows: dict[int, dict[str, list[float]]] = {
        threads: {"per_s": [], "processor_ms": [], "p95_ms": []} for threads in profile.threads
    }
    queries = list(short_texts(profile.queries))
    with BgeEncoder(model, device="cpu") as encoder:
        encoder.encode_queries(queries[:1])
        for _, order in interleaved(profile.threads, profile.rounds):
            for threads in order:
                for key, value in _asked(encoder, queries, threads).items():
                    rows[threads][key].append(value)
    return [
        {"threads": threads, **{key: statistics.median(values) for key, values in row.items()}}
        for threads, row in rows.items()
    ]


def _asked(encoder: BgeEncoder, queries: Sequence[str], threads: int) -> dict[str, float]:
    def ask(first: int) -> list[float]:
        waited = []
        for query in queries[first::threads]:
            start = time.perf_counter()
            encoder.encode_queries([query])
            waited.append(time.perf_counter() - start)
        return waited

    with ThreadPoolExecutor(threads) as pool:
        start, used = time.perf_counter(), time.process_time()
        waited = list(itertools.chain.from_iterable(pool.map(ask, range(threads))))
        used, seconds = time.process_time() - used, time.perf_counter() - start
    return {
        "per_s": len(queries) / seconds,
        "processor_ms": used / len(queries) * 1000,
        "p95_ms": percentile(waited, 95) * 1000,
    }


def measure_memory(model: str, profile: Profile, place: Path) -> list[dict[str, Any]]:
    """Encodes a generator of more and more texts, each time in a new process. Returns a row for each number."""
    rows = []
    for count in profile.memory:
        row: dict[str, Any] = {"texts": count, "ways": {}}
        for way in (IN_ARRAY, IN_MEMMAP, IN_FILE):
            file = place / "vectors.npy"
            command = [sys.executable, "-c", _PROGRAM, model, str(count), way, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row["ways"][way] = json.loads(done.stdout.splitlines()[-1])
            file.unlink(missing_ok=True)
        rows.append(row)
    return rows


def embed_in_this_process(model: str, count: int, way: str, file: str) -> dict[str, float]:
    """Encodes a generator of texts, and reads the memory before and meanwhile.

    Returns:
        `own_mib`: what was added to the process's own memory, at most; pages of mapped files are not in it.
        `resident_mib`: the most resident memory, with pages of mapped files.
        `seconds`: the time.
    """
    with BgeEncoder(model, device="cpu") as encoder:
        encoder.encode_documents(list(short_texts(min(count, 1000), seed=1)))
        output: Any = {IN_ARRAY: None, IN_FILE: file}.get(way)
        if way == IN_MEMMAP:
            shape = (count, encoder.dimension)
            output = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        before, most, start = own_memory_mib(), [0.0], time.perf_counter()

        def looked(texts: Iterator[str]) -> Iterator[str]:
            for number, text in enumerate(texts):
                if number % 1024 == 0:
                    most[0] = max(most[0], own_memory_mib())
                yield text

        vectors = encoder.encode_documents(looked(short_texts(count)), output=output)
        seconds = time.perf_counter() - start
        most[0] = max(most[0], own_memory_mib())
        _require(len(vectors), count)
    return {"own_mib": most[0] - before, "resident_mib": memory_mib()["peak_mib"], "seconds": seconds}


def fits(results: dict[str, Any]) -> dict[str, float]:
    """Returns what growth the measured lines have, by a sentence for each.

    Exponents are slopes of straight lines through the logarithms of medians of processor time.
    """
    found: dict[str, float] = {}
    for way in (ARRAY, FILE, LISTS):
        points = [(row["texts"], row["ways"][way]) for row in results.get("texts", ()) if way in row["ways"]]
        found |= _exponent(f"{way}: time against texts, from 1,000 on", points, least=1000)
    points = [(row["tokens"], row["ways"]["one text"]) for row in results.get("length", ())]
    found |= _exponent("time against tokens, to 512", points, most=512)
    found |= _exponent("time against tokens, from 1024 on", points, least=1024)
    points = [(row["flops"], row["ways"]["one text"]) for row in results.get("length", ()) if row["tokens"] >= 64]
    found |= _exponent("time against operations, from 64 tokens on", points)
    points = [(row["threads"], {"processor_median": row["processor_ms"]}) for row in results.get("threads", ())]
    found |= _exponent("processor time of a query against threads", points)
    if len(rows := results.get("memory", ())) > 1:
        for way in (IN_ARRAY, IN_MEMMAP, IN_FILE):
            grown = rows[-1]["ways"][way]["own_mib"] - rows[0]["ways"][way]["own_mib"]
            found[f"{way}: bytes of memory a text"] = grown * 2**20 / (rows[-1]["texts"] - rows[0]["texts"])
    return found


def _exponent(
    name: str, points: Sequence[tuple[float, dict[str, Any]]], least: float = 0, most: float = float("inf")
) -> dict[str, float]:
    kept = [(size, way["processor_median"]) for size, way in points if least <= size <= most]
    return {name: growth_exponent(*zip(*kept, strict=True))} if len(kept) > 1 else {}


def run(parts: Sequence[str], profile: Profile, workdir: Path) -> dict[str, Any]:
    """Measures some parts.

    Returns:
        Plain data: `machine`; `load`, the threads that wanted to run before, by core, or `None`; `shape`, the model for
        lengths; rows of each part; `fits`.
    """
    load = os.getloadavg()[0] / usable_cores() if hasattr(os, "getloadavg") else None
    tiny = str(checkpoint(SHAPES["tiny"], workdir))
    long = str(checkpoint(dataclasses.replace(SHAPES[profile.shape], positions=max(profile.lengths)), workdir))
    with tempfile.TemporaryDirectory(dir=workdir) as name:
        work: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "memory": lambda: measure_memory(tiny, profile, Path(name)),
            "texts": lambda: measure_texts(tiny, profile, Path(name)),
            "length": lambda: measure_length(long, profile),
            "threads": lambda: measure_threads(tiny, profile),
        }
        # Fresh processes first, while this one holds no models.
        results: dict[str, Any] = {part: measure() for part, measure in work.items() if part in parts}
    return {"machine": machine.facts(), "load": load, "shape": profile.shape, **results, "fits": fits(results)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    options = _parser().parse_args(arguments)
    if options.draw:
        results: dict[str, Any] = {}
        for file in options.draw:
            results |= json.loads(file.read_text(encoding="utf-8"))
        results["fits"] = fits(results)
    else:
        workdir = options.workdir.resolve()
        isolate(workdir)
        results = run(options.parts or PARTS, PROFILES[options.profile], workdir)
    print_results(Console(width=100), results)
    save(results, options.output / "growth.json")
    write_markdown(results, options.output / "growth.md")
    draw(results, options.output / "growth.png")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.growth", __doc__)
    add = parser.add_argument
    add("--profile", choices=list(PROFILES), default="full", help="full: half an hour on two cores; quick: seconds")
    add("--parts", nargs="+", choices=PARTS, help="some of the parts; all of them unless given")
    add("--draw", type=Path, nargs="+", metavar="JSON", help="measure nothing; print and draw saved runs together")
    add("--output", type=Path, default=Path("benchmarks/growth"), help="folder for growth.json, .md and .png")
    add_workdir(parser, "models and graphs")
    return parser


if __name__ == "__main__":
    main()
