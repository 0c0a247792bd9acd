"""Starts `bge serve` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fake_engine import LONG


@dataclass
class Server:
    """A running server.

    Attributes:
        process: Its process.
        address: Its address, such as `http://127.0.0.1:4711`.
        before: What it printed before it took requests.
    """

    process: subprocess.Popen[str]
    address: str
    before: str

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal, and returns the exit status and what else was printed."""
        self.process.send_signal(number)
        _, printed = self.process.communicate(timeout=LONG)
        return self.process.returncode, printed


@contextmanager
def running(*arguments: str | Path, **environment: str) -> Iterator[Server]:
    """A block in which a server runs on a free port, unless the arguments say another place."""
    place = [] if {"--port", "--uds"} & {*map(str, arguments)} else ["--port", "0"]
    command = [str(Path(sys.executable).with_name("bge")), "serve", *map(str, arguments), *place]
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, encoding="utf-8", env={**inherited, **environment}
    )
    assert process.stderr is not None
    try:
        before = ""
        for line in process.stderr:
            if found := re.fullmatch(r"serving at (\S+)\n", line):
                yield Server(process, found[1], before)
                return
            before += line
        raise AssertionError(f"it ended with {process.wait(LONG)}: {before}")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        process.stderr.close()
