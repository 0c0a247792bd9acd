"""Runs a script in processes that train together, as `torchrun` does.

They are forked from one process that has imported the libraries, which takes longer than most of these scripts. That a
command also runs under torchrun itself is tested in `test_train_command`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_PARENT = """
import json, os, runpy, signal, sys, traceback
import accelerate, pytest, sentence_transformers, torch.distributed, torch.nn.parallel, transformers
import bge_integrations.training.trainer.trainer

def run(job, rank):
    said = os.open(job["said"][rank], os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
    sys.argv[:] = [job["script"], *job["arguments"]]
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    job = json.loads(line)
    running, codes = {}, {}
    for rank in range(len(job["said"])):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = run(job, rank)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        running[pid] = rank
    while running:
        pid, status = os.wait()
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if status:  # the others would wait for it for ever
            for other in running:
                os.kill(other, signal.SIGKILL)
    print(json.dumps([codes[rank] for rank in sorted(codes)]), flush=True)
"""


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

    def __call__(self, source: str, *arguments: object, processes: int = 2) -> Ended:
        """Runs a script in each process, with the variables that torchrun sets.

        Args:
            source: The script.
            *arguments: Its arguments.
            processes: Number of processes.
        """
        if self._parent is None:
            self._parent = self._started()
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.py"
            script.write_text(source, encoding="utf-8")
            said = [Path(folder) / f"said.{rank}" for rank in range(processes)]
            job = {
                "script": str(script),
                "arguments": [*map(str, arguments)],
                "environment": _environment(processes),
                "said": [*map(str, said)],
            }
            assert self._parent.stdin is not None
            assert self._parent.stdout is not None
            print(json.dumps(job), file=self._parent.stdin, flush=True)
            codes = json.loads(self._parent.stdout.readline())
            return Ended(codes, "".join(path.read_text(encoding="utf-8", errors="replace") for path in said))

    def end(self) -> None:
        """Ends the process."""
        if self._parent is not None:
            self._parent.kill()
            self._parent.communicate()

    def _started(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _environment(processes: int) -> Mapping[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
