"""Runs a script in processes that train together, as `torchrun` does.

They are forked from one process that has imported the libraries, which takes longer than most of these scripts. That a
command also runs under torchrun itself is tested in `test_train_command`.

No process waits for ever. One that is forked while a thread of its parent holds a lock could, so the parent has no
other thread. One whose store is gone could, so the store has a process of its own, as the agent of torchrun is one. One
that frees its model at the end could (see `_GLOBALS`), so it ends without. At a time limit, each process prints the
stacks of its threads and ends.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

ROOT = Path(__file__).resolve().parents[1]

_ENVIRONMENT = {
    # Arrow, numpy and torch would start threads when they are imported.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
    # As under torchrun: no process hosts the store, which others need until their end.
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


@dataclass(frozen=True)
class Ended:
    """Processes that have ended.

    Attributes:
        codes: The exit status of each; the negative number of a signal that ended it.
        said: What all of them printed.
    """

    codes: list[int]
    said: str


class Together:
    """The process that the others are forked from. It starts with the first script."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None

    def __call__(self, source: str, *arguments: object, processes: int = 2, limit: float = 240) -> Ended:
        """Runs a script in each process, with the variables that torchrun sets. If one fails, the others are killed.

        Args:
            source: The script.
            *arguments: Its arguments.
            processes: Number of processes.
            limit: Time limit in seconds.

        Raises:
            TimeoutError: A process ran longer; with what all of them printed, and the stacks of their threads.
        """
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.py"
            script.write_text(source, encoding="utf-8")
            files = [Path(folder) / f"said.{rank}" for rank in range(processes)]
            codes = self._answer(
                {
                    "script": str(script),
                    "arguments": [*map(str, arguments)],
                    "environment": {**os.environ, **_ENVIRONMENT, "WORLD_SIZE": str(processes)},
                    "said": [*map(str, files)],
                    "limit": limit,
                }
            )
            said = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
        if codes is None:
            raise TimeoutError(f"ended after {limit} seconds:\n{said}")
        return Ended(codes, said)

    def end(self) -> None:
        """Ends the process and all that it has forked."""
        if self._parent is not None:
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.communicate()
            self._parent = None

    def _answer(self, job: Mapping[str, object]) -> list[int] | None:
        if self._parent is None:
            self._parent = self._started()
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        try:
            print(json.dumps(job), file=self._parent.stdin, flush=True)
            answer: list[int] | None = json.loads(self._parent.stdout.readline())
        except BaseException:  # what it answers later must not be taken for the answer to another script
            self.end()
            raise
        return answer

    def _started(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def _answer_lines() -> None:
    """Runs the script of each line of the standard input, and answers with a line of exit statuses."""
    import accelerate  # type: ignore[import-untyped]  # noqa: F401
    import pytest  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch.distributed
    import torch.nn.parallel  # noqa: F401

    import bge_integrations.training.trainer.trainer  # noqa: F401

    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_statuses(json.loads(line))), file=answers, flush=True)


def _statuses(job: Mapping[str, Any]) -> list[int] | None:
    """Returns the exit status of each process, or `None` if they took too long."""
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) <= 1, f"no process can be forked safely beside these threads: {threads}"
    context = get_context("fork")
    ports, port = context.Pipe(duplex=False)
    store = context.Process(target=_host_store, args=(port,))
    store.start()
    port.close()
    environment = {**job["environment"], "MASTER_PORT": ports.recv()}
    ranks = [context.Process(target=_run, args=(job, environment, rank)) for rank in range(len(job["said"]))]
    end = time.monotonic() + job["limit"]  # before that of each process
    for process in ranks:
        process.start()
    in_time = _wait(ranks, end)
    for process in ranks:
        process.join(0 if in_time else 30)  # they end themselves
    for process in [*ranks, store]:
        process.kill()
        process.join()
    return [int(process.exitcode or 0) for process in ranks] if in_time else None


def _wait(ranks: list[ForkProcess], end: float) -> bool:
    """Waits until all have ended or one has failed. Returns `False` if that is not before the time `end`."""
    running = ranks
    while running and not any(process.exitcode for process in ranks):
        ended = connection.wait([process.sentinel for process in running], max(0, end - time.monotonic()))
        if time.monotonic() >= end:
            return False
        for process in running:
            if process.sentinel in ended:
                process.join()
        running = [process for process in running if process.exitcode is None]
    return True


def _host_store(port: connection.Connection) -> None:
    """Tells the port of a store, and hosts it until the process is killed or has no parent any more."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    port.send(str(store.port))
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])


_GLOBALS: dict[str, object] = {"__name__": "__main__"}
"""What the script of this process defines, which outlives it. If the last reference to a process group were that of a
model, its end could wait for ever: it joins threads while it holds the interpreter's lock, and they need that lock."""


def _run(job: Mapping[str, Any], environment: Mapping[str, str], rank: int) -> None:
    said = os.open(job["said"][rank], os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    faulthandler.dump_traceback_later(job["limit"], exit=True, file=2)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=environment["WORLD_SIZE"])
    sys.argv[:] = [job["script"], *job["arguments"]]
    exec(compile(Path(job["script"]).read_text(encoding="utf-8"), job["script"], "exec"), _GLOBALS)


if __name__ == "__main__":
    _answer_lines()
