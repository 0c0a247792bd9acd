"""A program that embeds a corpus in child processes, and kills each of them somewhere. It prints what came of it.

Children are forked from a process that has imported everything and loaded nothing, so each begins at once. A child is
killed by SIGKILL, either before or after a step that it takes on the disk, or after a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the first fork

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.openvino import engine  # noqa: F401 - before the first fork
from bge_integrations.corpus import embed_corpus, job
from tests.corpora import digests

STEPS = ("fsync", "replace", "unlink", "mkdir")


def embed(source: Path, folder: Path, model: str, worker: tuple[int, int] = (1, 1)) -> None:
    """Embeds the corpus in small slices and shards."""
    job._TEXTS_A_SLICE = 16
    with BgeEncoder(model) as encoder:
        embed_corpus(source, folder, encoder, rows_per_shard=48, reject=True, worker=worker)


def die_at(step: int) -> None:
    """Kills this process at its step of this number: a write, a rename, a removal."""
    taken = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal taken
            taken += 1
            if taken == step and step % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*arguments, **options)
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return run

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def child(work: Callable[[], None]) -> int:
    """Starts a process that does some work, and returns its id."""
    number = os.fork()
    if number == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return number


def main(source: Path, place: Path, model: str, kills: int, seed: int) -> None:
    """Kills until it has done so often enough, and compares each folder that became complete."""
    chance = random.Random(seed)
    whole = place / "whole"
    begin = time.monotonic()
    assert os.waitpid(child(lambda: embed(source, whole, model)), 0)[1] == 0
    seconds = time.monotonic() - begin
    wanted = digests(whole)
    killed = runs = complete = 0
    by_step: list[int] = []
    folder = place / "killed-0"
    while killed < kills or folder.exists():
        runs += 1
        steps = chance.randrange(1, 60) if killed < kills and runs % 3 else 0
        after = chance.uniform(0.2, 1) * seconds if killed < kills and not steps else None

        def work(steps: int = steps, folder: Path = folder) -> None:
            if steps:
                die_at(steps)
            embed(source, folder, model)

        number = child(work)
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        status = os.waitpid(number, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
            by_step.append(steps)
            continue
        assert os.WEXITSTATUS(status) == 0, "a run failed"
        assert digests(folder) == wanted, "the files differ"
        complete += 1
        folder = place / f"killed-{complete}"
    lost = lose_workers(source, place, model, chance, seconds)
    assert all(digests(folder) == wanted for folder in lost), "the files of several workers differ"
    found = {"killed": killed, "runs": runs, "complete": complete, "steps": by_step, "lost": len(lost)}
    sys.stdout.write(json.dumps(found) + "\n")


def lose_workers(source: Path, place: Path, model: str, chance: random.Random, seconds: float) -> list[Path]:
    """Starts two workers on a folder and kills one of them; three times. Returns the folders."""
    folders = [place / f"lost-{number}" for number in range(3)]
    for folder in folders:
        workers = [child(partial(embed, source, folder, model, (number, 2))) for number in (1, 2)]
        time.sleep(chance.uniform(0.1, 0.9) * seconds)
        killed = chance.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
        status = {number: os.waitpid(number, 0)[1] for number in workers}
        assert all(status[number] == 0 for number in workers if number != killed), "the other worker failed"
    return folders


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
