"""A model that is replaced by another one is another one, however alike the files look."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bge_integrations import BgeEncoder
from bge_integrations.backend.checkpoint import digests
from bge_integrations.backend.checkpoint.digests import file_digest
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.conftest import MakeCheckpoint


def put_in_place(source: Path, target: Path) -> None:
    """Replaces a file by another of the same size, as `rsync --times` does it: by renaming, with the times kept."""
    before = target.stat()
    assert source.stat().st_size == before.st_size
    copy = target.with_name(f".{target.name}.copy")
    shutil.copyfile(source, copy)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.replace(target)


def write_over(source: Path, target: Path) -> None:
    """Writes another content of the same size into a file, and sets its times back."""
    before = target.stat()
    target.write_bytes(source.read_bytes())
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("replace", [put_in_place, write_over])
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_weights_of_equal_size_and_times_are_read_again(
    make: MakeCheckpoint, tmp_path: Path, replace: Callable[[Path, Path], None], engine: EngineName
) -> None:
    folder = make("bge-small-en")
    weights = {name: value * 1.5 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, tmp_path / "other", metadata={"format": "pt"})
    before = BgeEncoder(folder, device="cpu", engine=engine)
    np.testing.assert_allclose(before.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
    replace(tmp_path / "other", folder / "model.safetensors")
    after = BgeEncoder(folder, device="cpu", engine=engine)
    np.testing.assert_allclose(after.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
    assert after.backend.identity != before.backend.identity


@pytest.mark.parametrize("name", ["tokenizer.model", "colbert_linear.pt", "chat.jinja"])
def test_any_file_that_can_matter_makes_another_model(make: MakeCheckpoint, name: str) -> None:
    folder = make("bge-small-en")
    (folder / name).write_bytes(b"one")
    before = BgeEncoder(folder, device="cpu", engine="torch").backend
    assert BgeEncoder(folder, device="cpu", engine="torch").backend is before
    (folder / name).write_bytes(b"another")
    after = BgeEncoder(folder, device="cpu", engine="torch").backend
    assert after is not before
    assert after.identity != before.identity


def test_a_symlink_that_leads_elsewhere_makes_another_model(make: MakeCheckpoint, tmp_path: Path) -> None:
    folders = make("a/bge-small-en", modules=("cls",)), make("b/bge-small-en", modules=("cls",), seed=5)
    link = tmp_path / "bge-small-en"
    held = []
    for folder in folders:
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        held.append(BgeEncoder(link, device="cpu", engine="torch", normalize=True))
        np.testing.assert_allclose(held[-1].encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
    inside, other = (make(f"{name}/bge-small-en", modules=("cls",), seed=7) for name in ("c", "d"))
    shutil.rmtree(inside / "1_Pooling")
    (inside / "1_Pooling").symlink_to(other / "1_Pooling")
    before = BgeEncoder(inside, device="cpu", engine="torch").backend
    file = other / "1_Pooling" / "config.json"
    file.write_text(file.read_text() + "\n")
    assert BgeEncoder(inside, device="cpu", engine="torch").backend is not before


def test_a_prepared_folder_is_opened_again(make: MakeCheckpoint, tmp_path: Path) -> None:
    folders = make("a/bge-small-en"), make("b/bge-small-en", seed=5)
    prepared = tmp_path / "prepared", tmp_path / "other"
    for folder, target in zip(folders, prepared, strict=True):
        prepare(folder, target)
    before = BgeEncoder(prepared[0])
    np.testing.assert_allclose(before.encode(["fox"]), reference_vectors(folders[0], ["fox"]), atol=1e-5)
    for file in prepared[1].iterdir():
        shutil.copyfile(file, prepared[0] / f"{file.name}.new")
        (prepared[0] / f"{file.name}.new").replace(prepared[0] / file.name)
    after = BgeEncoder(prepared[0])
    np.testing.assert_allclose(after.encode(["fox"]), reference_vectors(folders[1], ["fox"]), atol=1e-5)


def hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TestDigests:
    @pytest.fixture(autouse=True)
    def _own_notes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))

    def test_are_remembered_only_of_files_that_were_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "weights"
        for content in (b"one", b"two"):  # maybe within one tick of the clock that files are stamped by
            file.write_bytes(content)
            os.utime(file, ns=(0, 0))
            for _ in range(2):
                assert file_digest(file) == hashed(content)
        (note,) = (file for file in (tmp_path / "cache" / "digests").iterdir() if hashed(b"two") in file.read_text())
        note.write_text(note.read_text().replace(hashed(b"two"), hashed(b"remembered")))
        assert file_digest(file) == hashed(b"two")
        note.write_text(note.read_text().replace(hashed(b"two"), hashed(b"remembered")))
        monkeypatch.setattr(digests, "_SETTLED", -(10**12))
        assert file_digest(file) == hashed(b"remembered")

    def test_of_the_hubs_blobs_are_their_names_unless_somebody_wrote_into_them(self, tmp_path: Path) -> None:
        blob, link = tmp_path / "blobs" / ("0" * 64), tmp_path / "model.safetensors"
        blob.parent.mkdir()
        blob.write_bytes(b"as it was fetched")
        link.symlink_to(blob)
        os.utime(blob, ns=(0, 0))
        assert file_digest(link) == blob.name
        link.write_bytes(b"saved through the symlink")
        os.utime(link, ns=(2**62, 2**62))
        assert file_digest(link) == hashed(b"saved through the symlink")


def test_a_fingerprint_is_alike_on_all_systems(tmp_path: Path) -> None:
    """Names with slashes, in the order of their characters; Windows has others, and sorts without regard to case."""
    folder = make_checkpoint(tmp_path / "bge-small-en", modules=("cls", "normalize"))
    for name in ("B.json", "a.json"):
        (folder / name).write_text("{}")
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    assert names.index("1_Pooling/config.json") < names.index("B.json") < names.index("a.json")
    expected = hashlib.sha256()
    for name in names:
        expected.update(f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    assert Checkpoint(folder, str(folder)).fingerprint == expected.hexdigest()
