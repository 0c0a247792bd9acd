"""Measures EmbedBatch on a local Ray beside one process that embeds the same passages.

The passages are windows of words out of the documentation of Python's standard library, all different. Both sides use
the same number of cores. The times include the load of the model, and for Ray the start of the actors; the start of Ray
itself is given apart. Processor time, of all processes of a side, says more than time on a busy machine. The vectors
are compared. Prints a table, and saves what it measured as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine
from benchmarks.command import add_minilm, add_workdir, parser_of, save
from benchmarks.docstrings.corpus import collect
from benchmarks.isolation import isolate
from benchmarks.stats import ratio_of_medians, spread
from benchmarks.table_parts import make_table, ratio_cell
from bge_integrations import BgeEncoder
from bge_integrations.backend.machine.cpu import usable_cores
from bge_integrations.distributed import EmbedBatch

ONE_PROCESS = "one process"
_WINDOWS = (12, 16, 8)
"""Words of a passage; later numbers are for more passages than the first ones give."""
_OBJECT_STORE = 2 << 30
_LOOK_EVERY = 0.5
_WIDTH = 100


def passages(count: int) -> list[str]:
    """Returns distinct passages of 8 to 16 words, the same in every run on the same Python.

    Raises:
        ValueError: The documentation does not have that many.
    """
    found: dict[str, None] = {}
    for width in _WINDOWS:
        for entry in collect():
            words = entry.text.split()
            for start in range(max(len(words) - width + 1, 1)):
                found[" ".join(words[start : start + width])] = None
                if len(found) == count:
                    return list(found)
    raise ValueError(f"there are {len(found)} passages, not {count}")


def in_one_process(model: str, texts: Sequence[str], cores: int) -> NDArray[np.float32]:
    """Loads the model and embeds everything in one call."""
    with BgeEncoder(model, device="cpu", threads=cores) as encoder:
        return encoder.encode_documents(texts)


def with_actors(dataset: Any, model: str, *, actors: int, cores: int, batch: int) -> Any:  # noqa: ANN401 - Ray's Dataset
    """Embeds a dataset with actors that share the cores evenly, and keeps the result in Ray's object store."""
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        EmbedBatch,
        fn_constructor_args=[model],
        fn_constructor_kwargs={"device": "cpu"},
        compute=ActorPoolStrategy(size=actors),
        num_cpus=cores // actors,
        batch_size=batch,
        batch_format="pyarrow",
    ).materialize()


def vectors_of(dataset: Any, dimension: int) -> NDArray[np.float32]:  # noqa: ANN401 - Ray's Dataset
    """Returns the vectors of a dataset in the order of its ids."""
    ids, rows = [], []
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        ids.append(table["id"].to_numpy())
        rows.append(table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dimension))
    return np.concatenate(rows)[np.argsort(np.concatenate(ids))]


class Clock:
    """Measures a block: `seconds`, and `processor_seconds` of this process and of all that it has started.

    A process that ends in the block counts as it was when it was last looked at.
    """

    seconds: float
    processor_seconds: float

    def __enter__(self) -> Clock:
        """Begins to measure."""
        self._used: dict[int, float] = {}
        self._look()
        self._before, self._start, self._ended = dict(self._used), time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the measurement."""
        self.seconds = time.perf_counter() - self._start
        self._ended.set()
        self._thread.join()
        self._look()
        self.processor_seconds = sum(used - self._before.get(process, 0) for process, used in self._used.items())

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended
                times = process.cpu_times()
                self._used[process.pid] = times.user + times.system


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        model: Folder of the model.
        texts: The passages.
        actors: Number of actors.
        cores: Cores of each side.
        batch: Rows of a batch.
        rounds: How often each side is measured, in turns.
    """

    model: str
    texts: Sequence[str]
    actors: int
    cores: int
    batch: int
    rounds: int


def measure(plan: Plan) -> dict[str, Any]:
    """Measures both sides in turns. Returns plain data."""
    import pyarrow as pa
    import ray

    with BgeEncoder(plan.model, device="cpu") as encoder:  # also builds the graph that both sides read
        lengths = encoder.count_tokens(plan.texts)
    start = time.perf_counter()
    ray.init(
        num_cpus=plan.cores,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=_OBJECT_STORE,
        _node_ip_address="127.0.0.1",
    )
    started = time.perf_counter() - start
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = pa.table({"id": np.arange(len(plan.texts)), "text": plan.texts})
    blocks = [table.slice(first, plan.batch) for first in range(0, table.num_rows, plan.batch)]
    with_ray = f"Ray, {plan.actors} actors"
    clocks: dict[str, list[Clock]] = {ONE_PROCESS: [], with_ray: []}
    for _ in range(plan.rounds):
        with Clock() as clock:
            alone = in_one_process(plan.model, plan.texts, plan.cores)
        clocks[ONE_PROCESS].append(clock)
        dataset = ray.data.from_arrow(blocks)
        with Clock() as clock:
            embedded = with_actors(dataset, plan.model, actors=plan.actors, cores=plan.cores, batch=plan.batch)
        clocks[with_ray].append(clock)
    difference = float(np.abs(vectors_of(embedded, alone.shape[1]) - alone).max())
    ray.shutdown()
    return {
        "machine": machine.facts(),
        "cores": plan.cores,
        "batch": plan.batch,
        "texts": {
            "texts": len(plan.texts),
            "tokens": int(lengths.sum()),
            "mean": float(lengths.mean()),
            "longest": int(lengths.max()),
        },
        "start_of_ray": started,
        "largest_difference": difference,
        "results": {name: summary(taken, clocks[ONE_PROCESS], int(lengths.sum())) for name, taken in clocks.items()},
    }


def summary(taken: Sequence[Clock], baseline: Sequence[Clock], tokens: int) -> dict[str, Any]:
    """Returns plain data about one side of a comparison, beside the side that the ratios are to."""
    seconds, processor_seconds = ([getattr(one, name) for one in taken] for name in ("seconds", "processor_seconds"))
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "tokens_per_s": tokens / statistics.median(seconds),
        "spread": spread(seconds),
        "ratio": ratio_of_medians(seconds, [one.seconds for one in baseline]),
        "processor_ratio": ratio_of_medians(processor_seconds, [one.processor_seconds for one in baseline]),
    }


def print_results(console: Console, found: dict[str, Any]) -> None:
    """Prints the table."""
    texts = found["texts"]
    title = f"{texts['texts']:,} passages, mean {texts['mean']:.1f} tokens, {found['cores']} cores"
    table = make_table(title, "seconds", "tokens/s", "ratio", "spread", "processor seconds", "ratio")
    for name, result in found["results"].items():
        table.add_row(
            name,
            f"{statistics.median(result['seconds']):.1f}",
            f"{result['tokens_per_s']:,.0f}",
            ratio_cell(result["ratio"]),
            f"{result['spread']:.2f}",
            f"{statistics.median(result['processor_seconds']):.1f}",
            ratio_cell(result["processor_ratio"]),
        )
    console.print(table)
    told = f"Ray itself started in {found['start_of_ray']:.1f} s. Largest difference: {found['largest_difference']:.1e}"
    console.print(told, markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = _parser()
    options = parser.parse_args(arguments)
    isolate(options.workdir.resolve())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray keeps one in the user's home
    if options.cores < options.actors:
        parser.error(f"--actors {options.actors} need as many cores, but --cores is {options.cores}")
    plan = Plan(
        model=str(options.model.resolve()),
        texts=passages(options.passages),
        actors=options.actors,
        cores=options.cores,
        batch=options.batch,
        rounds=options.rounds,
    )
    found = measure(plan)
    print_results(Console(width=_WIDTH), found)
    save(found, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.distributed", __doc__)
    add_minilm(parser)
    add = parser.add_argument
    add("--passages", type=int, default=100_000)
    add("--actors", type=int, default=2)
    add("--cores", type=int, default=usable_cores(), help="of each side; the actors share them")
    add("--batch", type=int, default=2048, help="rows of a batch of Ray")
    add("--rounds", type=int, default=1)
    add("--output", type=Path, default=Path("benchmarks/distributed.json"))
    add_workdir(parser, "graphs")
    return parser


if __name__ == "__main__":
    main()
