"""The process of `bge serve`: where it listens, what it refuses to start with, and how it ends."""

from __future__ import annotations

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


def test_on_a_unix_socket_only_its_user_may_connect_and_slow_clients_are_dropped(
    bge_small_en: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    with running("--model", bge_small_en, "--uds", path, "--body-seconds", "0.3") as server:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://server") as client:
            assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        for beginning in (
            b"",
            b"POST /embed HTTP/1.1\r\nHost: a\r\nX-",
            b"POST /embed HTTP/1.1\r\ncontent-length: 9\r\n\r\n{",
        ):
            with socket.socket(socket.AF_UNIX) as slow:
                slow.settimeout(LONG)
                slow.connect(str(path))
                slow.sendall(beginning)
                answer = b"".join(iter(lambda: slow.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.1 408") if beginning.endswith(b"{") else not answer
        assert server.stop() == (0, "")
    assert not path.exists()


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
