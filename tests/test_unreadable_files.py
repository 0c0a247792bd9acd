"""Files and folders that the user may not read, or the disk can't: the error names them and says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.backend.checkpoint import digests
from bge_integrations.errors import BgeError, ModelLoadError, PreparedModelError, SettingsError
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.prepare import prepare, read_calibration
from tests.closed_files import as_a_user_without_rights, open_to_everybody
from tests.decoder_checkpoints import make_embedder
from tests.test_adapters_with_a_base import make_adapter

MODELS: dict[str, type[Any]] = {
    "embedder": BgeEncoder,
    "reranker": BgeReranker,
    "m3": BgeM3Encoder,
    "decoder": BgeEncoder,
    "adapter": BgeEncoder,
    "prepared": BgeEncoder,
}


@pytest.fixture(scope="module")
def models(bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path) -> Iterator[dict[str, Path]]:
    """A copy of a model of each kind, which every user may read."""
    with open_to_everybody() as folder:
        found = {}
        for kind, model in {"embedder": bge_small_en, "reranker": bge_reranker_base, "m3": bge_m3}.items():
            found[kind] = shutil.copytree(model, folder / kind / model.name)
        found["decoder"] = make_embedder(folder / "decoder", "bge-code-v1")
        found["adapter"] = make_adapter(folder / "adapter", found["embedder"])
        found["prepared"] = folder / "prepared"
        prepare(bge_small_en, found["prepared"])
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield found


def load(kind: str, folder: Path) -> None:
    model = MODELS[kind](folder, device="cpu")
    _ = model.backend


def closed_files() -> list[tuple[str, str]]:
    of_each = ("config.json", "model.safetensors", "tokenizer.json")
    of_prepared = ("bge.json", "model.xml", "model.bin", "words.npy", "tokenizer.json", "heads.safetensors")
    return [
        *((kind, name) for kind in ("embedder", "reranker", "m3", "decoder") for name in of_each),
        ("embedder", "modules.json"),
        ("adapter", "adapter_config.json"),
        ("adapter", "adapter_model.safetensors"),
        ("embedder", "1_Pooling/config.json"),
        ("m3", "sparse_linear.pt"),
        ("m3", "colbert_linear.pt"),
        *(("prepared", name) for name in of_prepared),
    ]


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps rights otherwise")
@pytest.mark.parametrize(("kind", "name"), closed_files(), ids=lambda value: value)
def test_a_file_without_the_right_to_read_it(kind: str, name: str, models: dict[str, Path]) -> None:
    file = models[kind] / name
    file.chmod(0)
    try:
        with as_a_user_without_rights(), pytest.raises(ModelLoadError) as caught:
            load(kind, models[kind])
    finally:
        file.chmod(0o644)
    assert f"{file} can't be read" in str(caught.value)
    assert "permission to read it" in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps rights otherwise")
@pytest.mark.parametrize("mode", [0o000, 0o711, 0o744], ids=oct)
@pytest.mark.parametrize("place", [".", "1_Pooling"])
def test_a_folder_without_the_right_to_look_into_it(mode: int, place: str, models: dict[str, Path]) -> None:
    folder = models["embedder"] / place
    folder.chmod(mode)
    try:
        with as_a_user_without_rights(), pytest.raises(ModelLoadError) as caught:
            load("embedder", models["embedder"])
    finally:
        folder.chmod(0o755)
    assert f"{folder}" in str(caught.value)
    assert "can't be read" in str(caught.value)
    assert "permission to read it" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"), [("embedder", "model.safetensors"), ("reranker", "tokenizer.json"), ("m3", "config.json")]
)
def test_a_folder_where_a_file_should_be(kind: str, name: str, models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models[kind], tmp_path / models[kind].name)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ModelLoadError, match=rf"{name} is a folder, not a file\. Fetch or copy the model again"):
        load(kind, folder)


@pytest.mark.parametrize(
    ("kind", "error", "load_it"),
    [
        ("embedder", ModelLoadError, lambda folder, out: BgeEncoder(folder, device="cpu").backend),
        ("embedder", ModelLoadError, lambda folder, out: prepare(folder, out / "made")),
        ("prepared", PreparedModelError, lambda folder, out: BgeEncoder(folder).backend),
    ],
    ids=["loaded", "made ready", "prepared"],
)
def test_a_disk_that_fails_while_a_file_is_read(
    kind: str,
    error: type[BgeError],
    load_it: Callable[[Path, Path], object],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(models[kind], tmp_path / models[kind].name)

    def failing(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(digests, "content_digest", failing)
    with pytest.raises(error, match=rf"{folder}/.* can't be read: {os.strerror(errno.EIO)}\. Check the disk"):
        load_it(folder, tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps rights otherwise")
def test_calibration_texts_that_can_not_be_read(tmp_path: Path) -> None:
    with open_to_everybody() as folder:
        file = folder / "texts.txt"
        file.write_text("a text")
        file.chmod(0)
        with (
            as_a_user_without_rights(),
            pytest.raises(SettingsError, match=r"texts\.txt' can't be read: Permission denied\. Name a file"),
        ):
            read_calibration(file)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SettingsError, match=r"latin\.txt' can't be read as UTF-8 .*; save the file in this encoding"):
        read_calibration(tmp_path / "latin.txt")
