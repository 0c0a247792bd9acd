"""The cache of graphs: what it keeps, what becomes of it, and that nothing about it stands in the way of a model."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.backend.checkpoint.digests import cache_root, file_digest, key_of
from bge_integrations.backend.loading.sources import Sources
from bge_integrations.backend.prepared import cache as disk_cache
from bge_integrations.backend.prepared import entries as cache_entries
from bge_integrations.backend.prepared import folder as prepared
from bge_integrations.cli import app
from bge_integrations.errors import SettingsError
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.conftest import MakeCheckpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BGE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


class TestEntries:
    def test_a_graph_is_made_once(self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make("bge-small-en")
        BgeEncoder(folder, device="cpu").close()
        (entry,) = entries(own_cache)
        written = (entry / "model.bin").stat().st_mtime_ns
        monkeypatch.setattr(Sources, "description", None)  # would fail if it were needed
        again = BgeEncoder(folder, device="cpu", precision="bfloat16")
        assert entries(own_cache) == [entry]
        assert (entry / "model.bin").stat().st_mtime_ns == written
        assert again.encode(["fox"]).shape == (1, 32)

    def test_other_weights_are_another_entry(self, make: MakeCheckpoint, own_cache: Path) -> None:
        for seed in (1, 2):
            folder = make("bge-small-en", seed=seed)
            vector = BgeEncoder(folder, device="cpu").encode(["fox"])
            np.testing.assert_allclose(vector, reference_vectors(folder, ["fox"]), atol=1e-5)
        assert len(entries(own_cache)) == 2

    def test_a_copied_folder_shares_the_entry(self, make: MakeCheckpoint, own_cache: Path, tmp_path: Path) -> None:
        folder = make("bge-small-en")
        BgeEncoder(folder, device="cpu")
        BgeEncoder(shutil.copytree(folder, tmp_path / "copy" / "bge-small-en"), device="cpu")
        assert len(entries(own_cache)) == 1

    @pytest.mark.parametrize("damage", ["bytes", "manifest", "version", "missing", "empty"])
    def test_a_damaged_or_stale_entry_is_made_again(
        self, make: MakeCheckpoint, own_cache: Path, caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        folder = make("bge-small-en")
        BgeEncoder(folder, device="cpu").close()
        (entry,) = entries(own_cache)
        if damage == "bytes":
            (entry / "model.bin").write_bytes(b"\0" * (entry / "model.bin").stat().st_size)
        elif damage == "manifest":
            (entry / "bge.json").write_text("{")
        elif damage == "version":
            content = json.loads((entry / "bge.json").read_text())
            (entry / "bge.json").write_text(json.dumps({**content, "format": 0}))
        elif damage == "missing":
            (entry / "model.xml").unlink()
        else:
            shutil.rmtree(entry)
            entry.mkdir()
        with caplog.at_level(logging.WARNING, logger="bge_integrations"):
            vector = BgeEncoder(folder, device="cpu").encode(["fox"])
        assert "making the cached graph again" in caplog.text
        np.testing.assert_allclose(vector, reference_vectors(folder, ["fox"]), atol=1e-5)

    def test_processes_that_ask_at_once_do_not_clash(self, make: MakeCheckpoint, own_cache: Path) -> None:
        folder = make("bge-small-en")
        code = (
            "import sys; from bge_integrations import BgeEncoder; "
            "print(BgeEncoder(sys.argv[1], device='cpu').encode(['fox']).tolist())"
        )

        def run(_: int) -> str:
            command = [sys.executable, "-c", code, str(folder)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(run, range(3)))
        for vector in found:
            np.testing.assert_allclose(json.loads(vector), reference_vectors(folder, ["fox"]), atol=1e-5)
        assert len(entries(own_cache)) == 1

    def test_digests_follow_the_content_of_a_file(self, tmp_path: Path) -> None:
        import hashlib

        file = tmp_path / "weights"
        for content in (b"one", b"two"):
            file.write_bytes(content)
            for _ in range(2):
                assert file_digest(file) == hashlib.sha256(content).hexdigest()

    def test_a_damaged_note_of_a_digest_is_ignored(self, tmp_path: Path, own_cache: Path) -> None:
        (tmp_path / "weights").write_bytes(b"one")
        expected = file_digest(tmp_path / "weights")
        for note in (own_cache.parent / "digests").iterdir():
            note.write_bytes(b"\xff nonsense")
        assert file_digest(tmp_path / "weights") == expected

    def test_the_cache_has_a_place_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BGE_INTEGRATIONS_CACHE")
        assert "bge-integrations" in str(cache_entries.graphs_folder())

    def test_an_entry_that_is_none_is_made_again_and_nothing_else_is_removed(
        self, own_cache: Path, tmp_path: Path
    ) -> None:
        folder = make_checkpoint(tmp_path / "my-model", modules=("cls", "normalize"))
        expected = reference_vectors(folder, ["lazy fox"])

        def entry() -> Path:
            with BgeEncoder(folder) as encoder:
                np.testing.assert_allclose(encoder.encode(["lazy fox"]), expected, atol=1e-5)
            (found,) = [path for path in own_cache.iterdir() if path.suffix != ".lock"]
            return found

        made = entry()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "bge.json").write_text("{")
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        targets = (elsewhere, elsewhere / "bge.json", tmp_path / "none", loop)
        ways: list[Callable[[Path], object]] = [Path.mkdir, Path.touch]
        ways += [partial(Path.symlink_to, target=target) for target in targets]
        for put in ways:
            _remove(made)
            put(made)
            assert entry() == made
            assert made.is_dir()
            assert not made.is_symlink()
            assert (elsewhere / "bge.json").read_text() == "{"
        moved = Path(shutil.move(made, tmp_path / "moved"))
        made.symlink_to(moved)  # to a larger disk, say
        assert entry().is_symlink()

    @pytest.mark.parametrize("files", [None, ["bge.json", "model.bin"]])
    def test_another_models_entry_is_made_again(self, own_cache: Path, tmp_path: Path, files: list[str] | None) -> None:
        one, other = (make_checkpoint(tmp_path / f"my-{seed}", modules=("cls",), seed=seed) for seed in (1, 2))
        made: list[Path] = []
        for folder in (one, other):
            BgeEncoder(folder).close()
            made += [path for path in own_cache.iterdir() if path.suffix != ".lock" and path not in made]
        for file in made[1].iterdir():
            if files is None or file.name in files:
                shutil.copy(file, made[0])
        expected = reference_vectors(one, ["lazy fox"], normalize=False)
        with BgeEncoder(one) as encoder:
            np.testing.assert_allclose(encoder.encode(["lazy fox"]), expected, atol=1e-4)


def _remove(entry: Path) -> None:
    entry.unlink() if entry.is_symlink() or entry.is_file() else shutil.rmtree(entry)


_written: list[str] = []
_is_watched = False


def _note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if not _is_watched:
        return
    if event == "open" and isinstance(arguments[0], str):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(path)
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.symlink"):
        _written.append(f"{event} {arguments[0]}")


@pytest.fixture
def written() -> Iterator[list[str]]:
    """What is written to while a test runs."""
    global _is_watched
    if not any(hook is _note_writes for hook in _hooks):
        sys.addaudithook(_note_writes)
        _hooks.append(_note_writes)
    _written.clear()
    _is_watched = True
    yield _written
    _is_watched = False


_hooks: list[Any] = []


def test_a_finished_graph_is_read_without_a_lock_and_without_writing(
    make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = make("bge-small-en")
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))
    time.sleep(0.01)
    monkeypatch.setattr("bge_integrations.backend.checkpoint.digests._SETTLED", 0)  # as if the files were older
    BgeEncoder(folder, device="cpu").close()
    BgeEncoder(folder, device="cpu").close()
    monkeypatch.setattr(disk_cache, "FileLock", None)
    monkeypatch.setattr(Sources, "description", None)
    written = request.getfixturevalue("written")
    vectors = BgeEncoder(folder, device="cpu").encode(["fox"])
    assert not [path for path in written if str(cache_root()) in path]
    np.testing.assert_allclose(vectors, reference_vectors(folder, ["fox"]), atol=1e-5)


def _refuse(code: int) -> Callable[..., Any]:
    def refuse(*arguments: object, **_: object) -> Any:  # noqa: ANN401
        raise OSError(code, os.strerror(code), str(arguments[0]))

    return refuse


def _no_home(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    import pwd

    monkeypatch.delenv("BGE_INTEGRATIONS_CACHE")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: int) -> Any:  # noqa: ANN401
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's home folders")
def test_without_a_home_the_commands_say_that_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _no_home(monkeypatch, tmp_path)
    for command, said in (
        ("info", "none: there is no home folder"),
        ("cache", "0 in no folder (there is no home folder"),
    ):
        done = CliRunner().invoke(app, [command])
        assert done.exit_code == 0, done.output
        assert said in " ".join(done.output.split())
    assert CliRunner().invoke(app, ["cache", "clear"]).exit_code == 0


def _a_file_in_its_place(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    (place / "file").touch()
    monkeypatch.setenv("BGE_INTEGRATIONS_CACHE", str(place / "file" / "cache"))


def _read_only(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    make_folder = os.mkdir

    def refuse(path: Any, *arguments: Any) -> None:  # noqa: ANN401
        if str(place / "cache") in str(path):
            _refuse(errno.EROFS)(path)
        make_folder(path, *arguments)

    monkeypatch.setattr(os, "mkdir", refuse)


def _full(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def write(folder: Path, *_: object) -> None:
        (folder / "model.bin").write_bytes(b"half")
        _refuse(errno.ENOSPC)(folder / "model.bin")

    monkeypatch.setattr(prepared, "write_prepared_model", write)


def _full_for_openvino(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def write(folder: Path, *_: object) -> None:
        raise RuntimeError(f"Can't write {folder / 'model.bin'}")

    monkeypatch.setattr(prepared, "write_prepared_model", write)


def _cut_without_a_word(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    write = prepared.write_prepared_model

    def write_half(folder: Path, *parts: Any) -> None:  # noqa: ANN401
        write(folder, *parts)
        (folder / "model.bin").write_bytes(b"half")

    monkeypatch.setattr(prepared, "write_prepared_model", write_half)


def _no_renaming(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(Path, "rename", _refuse(errno.EACCES))


def _held_by_a_scanner(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """As on Windows: a folder with an open file in it can't be renamed or removed."""
    (entry,) = entries(place / "cache" / "graphs")
    (entry / "bge.json").write_text("{")
    monkeypatch.setattr(Path, "rename", _refuse(errno.EACCES))


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(_no_home, marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX's home folders")),
        _a_file_in_its_place,
        _read_only,
        _full,
        _full_for_openvino,
        _cut_without_a_word,
        _no_renaming,
        _held_by_a_scanner,
    ],
    ids=lambda obstacle: obstacle.__name__.strip("_"),
)
def test_without_a_cache_a_model_is_used_from_memory_and_one_warning_says_why(
    make: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    obstacle: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    folder = make("bge-small-en")
    if obstacle is _held_by_a_scanner:
        BgeEncoder(folder, device="cpu").close()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(temporary)
    with monkeypatch.context() as patch:
        obstacle(patch, tmp_path)
        encoder = BgeEncoder(folder, device="cpu")
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
    kept = [record.message for record in caplog.records if "can't be kept" in record.message]
    assert len(kept) == 1
    assert str(tmp_path) in kept[0] or "no home folder" in kept[0]
    assert not list(temporary.iterdir())
    left = [path.name for path in (tmp_path / "cache").rglob("making-*")]
    assert not left


class TestLocks:
    @pytest.fixture(autouse=True)
    def _no_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk_cache, "_PATIENCE_S", 0.05)

    @staticmethod
    def _lock_of(folder: Path, own_cache: Path) -> Path:
        """The file that is locked while a model's graph is made."""
        BgeEncoder(folder, device="cpu").close()
        (entry,) = entries(own_cache)
        shutil.rmtree(entry)
        return entry.with_name(f"{entry.name}.lock")

    def test_another_process_is_waited_for_and_that_is_said(
        self, make: MakeCheckpoint, own_cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = make("bge-small-en")
        lock = filelock.FileLock(self._lock_of(folder, own_cache), thread_local=False)
        lock.acquire()
        loading = threading.Thread(target=lambda: BgeEncoder(folder, device="cpu").close())
        loading.start()
        while "waiting for another process" not in caplog.text:
            assert loading.is_alive()
            time.sleep(0.01)
        assert not entries(own_cache)
        lock.release()
        loading.join(60)
        assert len(entries(own_cache)) == 1
        assert caplog.text.count("waiting for another process") == 1
        assert lock.lock_file in caplog.text

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks of its own")
    def test_without_flock_what_another_machine_left_is_not_waited_for(
        self,
        make: MakeCheckpoint,
        own_cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        import fcntl

        folder = make("bge-small-en")
        lock = self._lock_of(folder, own_cache)
        lock.write_text("4194303\nanother-host\n")
        monkeypatch.setattr(fcntl, "flock", _refuse(errno.ENOSYS))
        for _ in range(2):  # the second time there is a graph, which needs no lock
            encoder = BgeEncoder(folder, device="cpu")
            np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(folder, ["fox"]), atol=1e-5)
            encoder.close()
        assert len(entries(own_cache)) == 1
        assert not [record for record in caplog.records if record.levelname == "WARNING"]

    @pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(37, "no locks")])
    def test_where_none_can_be_had_the_graph_is_made_and_kept(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        folder = make("bge-small-en")
        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        BgeEncoder(folder, device="cpu").close()
        assert len(entries(own_cache)) == 1


class TestSize:
    @staticmethod
    def _fill(folder: Path, own_cache: Path, *ages: int) -> list[Path]:
        """Makes entries, used so many days ago."""
        BgeEncoder(folder, device="cpu").close()
        (first,) = entries(own_cache)
        copies = (first.with_name(f"{number:032}-{prepared.FORMAT}") for number in range(1, len(ages)))
        made = [first, *(shutil.copytree(first, copy) for copy in copies)]
        for entry, age in zip(made, ages, strict=True):
            when = time.time() - age * 86400
            os.utime(entry / "tokenizer.json", (when, when))
        return made

    def test_what_was_not_used_for_longest_goes_and_the_newest_stays(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old, older, recent = self._fill(make("bge-small-en"), own_cache, 5, 9, 1)
        size = cache_entries.entries()[0].size
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", str(int(size * 3.5)))
        BgeEncoder(make_checkpoint(own_cache.parent / "bge-small-en", seed=2), device="cpu").close()
        left = entries(own_cache)
        assert not older.exists()
        assert {old, recent} < set(left)
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", "1KB")
        BgeEncoder(make_checkpoint(own_cache.parent / "bge-base-en", seed=3), device="cpu").close()
        (newest,) = entries(own_cache)
        assert newest not in left

    def test_what_this_version_cant_read_goes_first(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        current, former, damaged = self._fill(make("bge-small-en"), own_cache, 30, 1, 1)
        content = json.loads((former / "bge.json").read_text())
        (former / "bge.json").write_text(json.dumps({**content, "format": 1}))
        (damaged / "bge.json").write_text("{")
        limit = sum(entry.size for entry in cache_entries.entries() if entry.folder == current)
        cache_entries.prune(limit, keep=own_cache / "none")
        assert entries(own_cache) == [current]

    def test_one_that_is_in_use_can_be_removed_and_its_users_go_on(self, make: MakeCheckpoint, own_cache: Path) -> None:
        folder = make("bge-small-en")
        encoder = BgeEncoder(folder, device="cpu")
        expected = encoder.encode(["fox"])
        cache_entries.prune(0, keep=own_cache / "none")
        assert not entries(own_cache)
        assert not list(own_cache.glob("*.lock"))
        np.testing.assert_array_equal(encoder.encode(["fox"]), expected)
        another = encoder.backend.scheduler._slots[-1].make()  # as a helper, or a forked process, makes it later
        assert another is not encoder.backend.engine

    def test_one_that_cant_be_removed_stays(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held, _ = self._fill(make("bge-small-en"), own_cache, 9, 1)
        rename = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            return rename(path, target) if path != held else _refuse(errno.EACCES)(path)

        monkeypatch.setattr(Path, "rename", refuse)
        cache_entries.prune(0, keep=own_cache / "none")
        assert entries(own_cache) == [held]
        assert (held / "bge.json").is_file()

    def test_no_limit_and_what_is_none(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", "none")
        assert cache_entries.cache_limit() is None
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", "1.5 GiB")
        assert cache_entries.cache_limit() == 3 * 2**29
        monkeypatch.setenv("BGE_INTEGRATIONS_CACHE_LIMIT", "much")
        with pytest.raises(SettingsError, match="BGE_INTEGRATIONS_CACHE_LIMIT='much' is not a size; set a size like"):
            BgeEncoder(make("bge-small-en"), device="cpu")

    def test_what_processes_that_died_have_left_is_removed(self, make: MakeCheckpoint, own_cache: Path) -> None:
        own_cache.mkdir(parents=True)
        for name in ("making-half", "making-now", "removed-half"):
            (own_cache / name).mkdir()
        for name in ("making-half", "removed-half"):
            os.utime(own_cache / name, (1, 1))
        BgeEncoder(make("bge-small-en"), device="cpu").close()
        assert sorted(path.name for path in entries(own_cache) if "-" in path.name[:8]) == ["making-now"]


class TestKeys:
    def test_one_stays_as_it_is_from_version_to_version(self) -> None:
        assert (
            key_of({"content": "c0ffee", "pooling": None, "purpose": "vectors"}) == "1fe31c7027418341839337a9c78efcf7"
        )

    def test_another_format_is_another_folder(
        self, make: MakeCheckpoint, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make("bge-small-en")
        BgeEncoder(folder, device="cpu").close()
        (former,) = entries(own_cache)
        before = {path.name: path.stat().st_mtime_ns for path in former.iterdir()}
        for module in (disk_cache, prepared):
            monkeypatch.setattr(module, "FORMAT", prepared.FORMAT + 1)
        BgeEncoder(folder, device="cpu").close()
        assert len(entries(own_cache)) == 2
        assert {path.name: path.stat().st_mtime_ns for path in former.iterdir()} == before

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask to speak of")
    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
    def test_the_umask_says_who_may_read_it(self, make: MakeCheckpoint, own_cache: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            BgeEncoder(make("bge-small-en"), device="cpu").close()
        finally:
            os.umask(before)
        (entry,) = entries(own_cache)
        assert entry.stat().st_mode & 0o777 == mode
        for file in (*entry.iterdir(), *own_cache.glob("*.lock"), *(own_cache.parent / "digests").iterdir()):
            assert file.stat().st_mode & 0o777 == mode & 0o666, file


class TestCommand:
    @staticmethod
    def _bge(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["cache", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def test_an_empty_cache_is_listed(self, own_cache: Path) -> None:
        said = " ".join(self._bge().split())  # as wide as `COLUMNS` says
        assert said.startswith(f"0 in {own_cache}: 0 MiB, limit 19,073 MiB (BGE_INTEGRATIONS_CACHE_LIMIT)")

    def test_entries_are_listed_and_cleared(self, make: MakeCheckpoint, own_cache: Path) -> None:
        for name, seed in (("bge-small-en", 1), ("bge-base-en", 2), ("bge-large-en", 3)):
            BgeEncoder(make(name, seed=seed), device="cpu").close()
        small, base, large = sorted(entries(own_cache), key=lambda path: path.stat().st_ctime_ns)
        content = json.loads((base / "bge.json").read_text())
        (base / "bge.json").write_text(json.dumps({**content, "format": 1}))
        (large / "bge.json").write_text("{")
        rows = [line.split() for line in self._bge().splitlines()]
        assert ["bge-small-en", "float32", "vectors"] in [row[:3] for row in rows]
        assert sorted(row[-1] for row in rows[1:4] if row[0] != "bge-small-en") == ["damaged", "version"]
        listed = {entry["model"]: entry for entry in json.loads(self._bge("--json"))["entries"]}
        assert set(listed) == {"bge-small-en", "bge-base-en", None}
        assert listed["bge-small-en"]["is_current"]
        assert listed["bge-small-en"]["bytes"] == sum(path.stat().st_size for path in small.iterdir())
        assert self._bge("clear", "--old").startswith("removed 2: ")
        assert entries(own_cache) == [small]
        assert self._bge("clear", "bge-large-en").startswith("removed 0: ")
        assert list((own_cache.parent / "digests").iterdir())
        assert self._bge("clear").startswith("removed 1: ")
        assert not list(own_cache.iterdir())
        assert not list((own_cache.parent / "digests").iterdir())
