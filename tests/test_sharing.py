"""One loaded model for equal settings, and none when nobody needs it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder
from bge_integrations.backend.loading import model as loading
from bge_integrations.backend.loading import start as starting
from bge_integrations.backend.loading.started import Started
from bge_integrations.errors import ModelLoadError
from tests.checkpoints import make_checkpoint
from tests.conftest import MakeCheckpoint


def test_what_belongs_to_the_encoder_never_loads_a_second_model(bge_small_en: Path) -> None:
    first = BgeEncoder(bge_small_en)
    others = [
        BgeEncoder(str(bge_small_en)),
        BgeEncoder(bge_small_en, query_instruction="x", document_instruction="y"),
        BgeEncoder(bge_small_en, normalize=False, truncate_dim=4, max_length=9),
        BgeEncoder(bge_small_en, on_truncation="ignore", show_progress=True, batch_tokens=10, batch_size=2),
        BgeEncoder(bge_small_en, device="cpu", token="hf_other"),
    ]
    if first.backend.device == "cpu":
        assert all(other.backend is first.backend for other in others)


def test_one_device_under_two_names_shares_one_model(bge_small_en: Path) -> None:
    assert BgeEncoder(bge_small_en, device="cpu").backend is BgeEncoder(bge_small_en, device="cpu:0").backend


def test_another_precision_is_another_model(bge_small_en: Path) -> None:
    exact, rounded = (BgeEncoder(bge_small_en, device="cpu", precision=p) for p in ("float32", "bfloat16"))
    assert exact.backend is not rounded.backend
    cosine = (exact.encode(["lazy fox"]) * rounded.encode(["lazy fox"])).sum()
    assert 0.999 < cosine < 1 - 1e-7


def test_a_relative_path_and_a_whole_one_share(bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BgeEncoder(bge_small_en)
    monkeypatch.chdir(bge_small_en.parent)
    assert BgeEncoder(f"./{bge_small_en.name}").backend is whole.backend


def test_a_folder_trained_again_in_place_is_loaded_again(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en")
    before = BgeEncoder(folder)
    make_checkpoint(folder, seed=5)
    after = BgeEncoder(folder)
    assert after.backend is not before.backend
    assert not np.allclose(after.encode(["fox"]), before.encode(["fox"]), atol=1e-3)


def test_threads_that_ask_at_once_load_once(make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("bge-small-en")
    loads: list[str] = []
    start = starting.start

    def counted(*args: Any) -> Started:  # noqa: ANN401
        loads.append("load")
        return start(*args)

    monkeypatch.setattr(loading, "start", counted)
    barrier = threading.Barrier(8)

    def construct(_: int) -> BgeEncoder:
        barrier.wait()
        return BgeEncoder(folder)

    with ThreadPoolExecutor(8) as pool:
        encoders = list(pool.map(construct, range(8)))
    assert loads == ["load"]
    assert len({id(encoder.backend) for encoder in encoders}) == 1


def test_a_failed_load_is_tried_again(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ModelLoadError, match="is cut off after 1000 bytes"):
        BgeEncoder(folder)
    (folder / "model.safetensors").write_bytes(weights)
    assert BgeEncoder(folder).encode(["fox"]).shape == (1, 32)


def test_weights_are_released_when_the_last_user_is_gone(make: MakeCheckpoint) -> None:
    folder = make("bge-small-en")
    first, second = BgeEncoder(folder), BgeEncoder(folder)
    weights = weakref.ref(first.client)
    gc.collect()
    gc.disable()
    try:
        first.close()
        assert weights() is not None
        del second
        assert weights() is None
    finally:
        gc.enable()


def test_many_threads_get_what_one_gets(bge_small_en: Path) -> None:
    encoder = BgeEncoder(bge_small_en, batch_tokens=64)
    texts = [f"fox {'dog ' * (i % 17)}" for i in range(64)]
    expected = encoder.encode_documents(texts)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: encoder.encode_documents(texts), range(16)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


MEMORY = """
import gc, sys, psutil
from bge_integrations import BgeEncoder
rss = lambda: psutil.Process().memory_info().rss / 2**20
encoders = [BgeEncoder(sys.argv[1], device="cpu")]
encoders[0].encode(["warm up"])
one = rss()
encoders += [BgeEncoder(sys.argv[1], device="cpu", query_instruction=str(i)) for i in range(4)]
for encoder in encoders:
    encoder.encode(["warm up"])
print(rss() - one)
"""


def test_five_encoders_take_the_memory_of_one(minilm: str) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY, minilm], capture_output=True, text=True, check=True)
    weights_mib = (Path(minilm) / "model.safetensors").stat().st_size / 2**20
    assert weights_mib > 80
    assert float(run.stdout) < weights_mib / 4


def test_a_model_that_is_let_go_is_never_given_to_somebody_else(bge_small_en: Path) -> None:
    def come_and_go(_: int) -> None:
        for _ in range(15):
            encoder = BgeEncoder(bge_small_en, device="cpu")
            assert encoder.encode_queries(["fox"]).shape == (1, 32)
            del encoder

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
