"""The process of `bge serve`: where it listens, what it refuses to start with, and how it ends."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.cli import app
from bge_integrations.cli.serve import loaded
from bge_integrations.errors import SettingsError
from bge_integrations.server.process import bound, is_local
from tests.fake_engine import LONG
from tests.server_process import running


def test_finishes_what_runs_and_refuses_the_rest_after_sigterm(bge_small_en: Path) -> None:
    texts = [f"text {place} " * 20 for place in range(2000)]
    with (
        running("--model", bge_small_en, "--max-length", "64") as server,
        httpx.Client(base_url=server.address) as client,
    ):
        assert client.get("/ready").status_code == 200
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.address}/embed", json={"inputs": texts}, timeout=LONG))
        )
        asking.start()
        while not answers and 'bge_texts_in_progress{queue="bulk"} 2000.0' not in client.get("/metrics").text:
            pass
        server.process.terminate()
        statuses = []
        # New connections are answered for as long as the first request runs.
        with suppress(httpx.TransportError):
            while not answers:
                statuses.append(httpx.post(f"{server.address}/embed", json={"inputs": "a"}).status_code)
        asking.join(LONG)
        assert answers[0].status_code == 200
        assert len(answers[0].json()) == len(texts)
        assert 503 in statuses
        assert statuses.index(503) <= 2
        assert server.process.wait(LONG) == 0
    with BgeEncoder(bge_small_en, max_length=64, on_truncation="ignore") as encoder:
        expected = encoder.encode_documents(texts)
    np.testing.assert_allclose(np.array(answers[0].json(), np.float32), expected, atol=1e-6)


@pytest.fixture(params=["with httptools and uvloop", "without"])
def parser(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Variables under which a server finds uvicorn's optional packages, or does not."""
    if request.param == "without":
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        for name in ("httptools", "uvloop"):
            (hidden / f"{name}.py").write_text("raise ImportError")
        return {"PYTHONPATH": os.pathsep.join([str(hidden), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return {}


class TestOnASocket:
    SLOW = (
        b"",
        b"POST /embed HTTP/1.1\r\nHost: a\r\nX-",
        b"POST /embed HTTP/1.1\r\nHost: a\r\ncontent-length: 9\r\n\r\n{",
    )

    def test_only_its_user_may_connect_and_no_client_stays_for_ever(
        self, bge_small_en: Path, tmp_path: Path, parser: dict[str, str]
    ) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
        with running("--model", bge_small_en, "--uds", path, "--body-seconds", "0.3", **parser) as server:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022
            transport = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(transport=transport, base_url="http://server") as client:
                assert client.post("/embed", json={"inputs": "a"}).status_code == 200
            for beginning in self.SLOW:
                answer = self._answer(path, beginning)
                assert answer.startswith(b"HTTP/1.1 408") if beginning.endswith(b"{") else not answer
            assert b" 200 " not in self._answer(path, b"GET /health HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n")
            self._reads_nothing(path)
            assert server.stop()[0] == 0
        assert not path.exists()

    def _answer(self, path: Path, sent: bytes) -> bytes:
        """Returns all that comes until the server closes the connection."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG)
            client.connect(str(path))
            with suppress(OSError):  # it may close before all is sent
                client.sendall(sent)
                return b"".join(iter(lambda: client.recv(65536), b""))
        return b""

    def _reads_nothing(self, path: Path) -> None:
        """Asks for much, and waits until the server gives up, without reading any of the answer."""
        content = json.dumps({"inputs": "a " * 100_000}).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            given_up = select.poll()
            given_up.register(client, 0)  # no event of reading or writing, but the end is told always
            assert given_up.poll(LONG * 1000)


def test_warns_where_everyone_can_use_it(bge_small_en: Path) -> None:
    with running("--model", bge_small_en, "--host", "0.0.0.0") as server:
        assert "is open to the network, and there is no key" in server.before
        with ThreadPoolExecutor(8) as threads:
            texts = [f"text {place}" for place in range(64)]
            ask = lambda text: httpx.post(f"http://127.0.0.1:{server.port}/embed", json={"inputs": text}).json()[0]  # noqa: E731
            found = list(threads.map(ask, texts))
    with BgeEncoder(bge_small_en) as encoder:
        np.testing.assert_allclose(np.array(found, np.float32), encoder.encode_documents(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is no model to serve"),
        (["--reranker", "r", "--m3"], "--m3 needs --model"),
        (["--model", "m", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE: this variable is not set"),
        (["--model", "m", "--default-input-type", "both"], "default_input_type='both' is unknown"),
        (["--model", "m", "--host", "no.such.host.invalid"], "can't be used"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        CliRunner().invoke(app, ["serve", *arguments], catch_exceptions=False)


def test_a_place_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with bound("127.0.0.1", 0) as (taken, _):
        taken.listen()
        port = taken.getsockname()[1]
        assert is_local(taken)
        with (
            pytest.raises(SettingsError, match=f"port={port} can't be used.*Choose another port"),
            bound("127.0.0.1", port),
        ):
            pass
    with bound("", 0, str(tmp_path / "socket")) as (taken, address):
        taken.listen()
        assert address == f"unix:{tmp_path / 'socket'}"
        with pytest.raises(SettingsError, match="in use by another process"), bound("", 0, str(tmp_path / "socket")):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is not a socket"), bound("", 0, str(tmp_path / "file")):
        pass
    with bound("0.0.0.0", 0) as (listener, _):
        assert not is_local(listener)


def test_bge_m3_is_in_memory_once(bge_m3: Path, bge_reranker_base: Path) -> None:
    found = loaded(str(bge_m3), str(bge_reranker_base), {"query_instruction": "q: "}, m3=True)
    assert found["encoder"] is not None
    assert found["m3"] is not None
    assert found["reranker"] is not None
    assert found["encoder"].backend is found["m3"].backend
    # A text before each query is for the encoder alone.
    assert (found["encoder"].settings.query_instruction, found["reranker"].settings.query_instruction) == ("q: ", None)
