"""Where `prepare` writes: what it refuses before the work, and what becomes of a finished model that can't be moved."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder
from bge_integrations.backend.prepared import folder as prepared
from bge_integrations.backend.prepared import output as output_folder
from bge_integrations.errors import ModelLoadError, SettingsError
from bge_integrations.prepare import PreparedPrecision, prepare
from tests.closed_files import as_a_user_without_rights, open_to_everybody
from tests.conftest import MakeCheckpoint

FILES = {"bge.json", "heads.safetensors", "model.bin", "model.xml", "tokenizer.json", "words.npy"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose content a test compares before and after."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights would be loaded."""
    monkeypatch.setattr("bge_integrations.prepare.Sources", None)


@pytest.fixture(scope="module")
def written(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared model to copy, so that most tests prepare none."""
    folder = tmp_path_factory.mktemp("written") / "made"
    prepare(bge_small_en, folder)
    return folder


@pytest.fixture
def quick(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `prepare` write a copy of what was written before, in place of loading a model."""

    def copy(folder: Path, *_: object, **__: object) -> str:
        for file in written.iterdir():
            shutil.copyfile(file, folder / file.name)
        return "the manifest"

    monkeypatch.setattr("bge_integrations.prepare._write", copy)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusing(
    monkeypatch: pytest.MonkeyPatch, name: str, refused: Callable[[Path], bool], code: int = errno.EACCES
) -> None:
    """Has a function of `os` or `shutil` fail for some of the paths that it is first given."""
    module = shutil if hasattr(shutil, name) and name != "rename" else os
    real: Callable[..., Any] = getattr(module, name)

    def sometimes(source: Any, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the real one
        if refused(Path(source)):
            raise OSError(code, os.strerror(code), str(source))
        return real(source, *arguments, **keywords)

    monkeypatch.setattr(module, name, sometimes)


class TestRefusedBeforeTheWork:
    @pytest.fixture(autouse=True)
    def no_work(self, without_work: None) -> None:
        """Nothing here is a matter of loading a model first."""

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("a file", "exists already; name a new folder or an empty one"),
            ("a file/made", "can't be made: '.*a file' is a file"),
            ("a file/below/made", "can't be made: '.*a file' is a file"),
            ("a link that leads nowhere", "is a symlink to 'nowhere', which is not a folder"),
            ("no empty folder", "exists already"),
            ("no empty folder/", "exists already"),
            ("link to no empty folder", "exists already"),
            ("no empty folder/missing/..", "exists already"),
            ("n" * 300, "can't be opened: File name too long"),
            ("nul\0character", "has a null character"),
            ("half a \ud800 letter", "has a lone surrogate"),
        ],
    )
    def test_an_output_that_is_taken_or_can_not_be(
        self, output: str, message: str, bge_small_en: Path, place: Path
    ) -> None:
        (place / "a file").touch()
        (place / "a link that leads nowhere").symlink_to("nowhere")
        (place / "no empty folder").mkdir()
        (place / "no empty folder" / "notes.txt").touch()
        (place / "link to no empty folder").symlink_to("no empty folder")
        before = sorted(place.rglob("*"))
        with pytest.raises(SettingsError, match=rf"^output='.*{message}"):
            prepare(bge_small_en, f"{place}/{output}")
        assert sorted(place.rglob("*")) == before

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("", "names no folder"),
            (".", "exists already"),
            ("..", "exists already"),
            ("/", "exists already"),
            ("~somebody who is not there/made", "Write the path without '~'"),
        ],
    )
    def test_an_output_in_few_characters(
        self, output: str, message: str, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (place / "notes.txt").touch()
        monkeypatch.chdir(place)
        with pytest.raises(SettingsError, match=message):
            prepare(bge_small_en, output)
        assert names(place) == {"notes.txt"}

    def test_the_models_own_folder(self, bge_small_en: Path) -> None:
        before = sorted(bge_small_en.rglob("*"))
        with pytest.raises(SettingsError, match="exists already"):
            prepare(bge_small_en, bge_small_en)
        assert sorted(bge_small_en.rglob("*")) == before

    def test_a_relative_path_where_the_current_folder_was_deleted(
        self, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(place)
        place.rmdir()
        with pytest.raises(SettingsError, match=r"output='made' can't be found: the current folder was deleted\."):
            prepare(bge_small_en, "made")

    @pytest.mark.parametrize("output", ["closed/made", "closed/missing/made", "empty and closed"])
    def test_a_folder_without_the_right_to_write(self, output: str, bge_small_en: Path) -> None:
        with open_to_everybody() as folder:
            (folder / "closed").mkdir(mode=0o555)
            (folder / "empty and closed").mkdir(mode=0o555)
            before = sorted(folder.rglob("*"))
            with (
                as_a_user_without_rights(),
                pytest.raises(SettingsError, match=r"can't be written to: Permission denied\. Name another folder"),
            ):
                prepare("BAAI/no-such-model", folder / output)
            assert sorted(folder.rglob("*")) == before

    def test_a_name_that_is_no_utf8(self, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SettingsError, match="holds a file name that is not in UTF-8; rename"):
            prepare(bge_small_en, os.fsdecode(os.fsencode(place / "made") + b"\xff"))
        monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
        with pytest.raises(SettingsError, match=r"not in ascii.* Set PYTHONUTF8=1 or LC_ALL=C\.UTF-8"):
            prepare(bge_small_en, place / os.fsdecode("模型".encode() + b"\xff"))
        assert names(place) == set()


class TestAccepted:
    @pytest.fixture(autouse=True)
    def in_no_time(self, quick: None) -> None:
        """Nothing here is a matter of the model."""

    @pytest.mark.parametrize(
        "output", ["made", "made/", "missing/between/made", "missing/../made", "n" * 255, "模型 é"]
    )
    def test_a_new_folder(self, output: str, bge_small_en: Path, place: Path) -> None:
        prepare(bge_small_en, f"{place}/{output}")
        made = Path(os.path.normpath(f"{place}/{output}"))
        assert names(made) == FILES
        assert names(made.parent) == {made.name}

    def test_an_empty_folder_stays_the_one_it_is(self, bge_small_en: Path, place: Path) -> None:
        (place / "empty").mkdir(mode=0o750)
        (place / "link").symlink_to("empty")
        before = (place / "empty").stat()
        prepare(bge_small_en, place / "link")
        after = (place / "empty").stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        assert (place / "link").is_symlink()
        assert names(place / "empty") == FILES

    def test_a_volume_that_was_just_mounted(self, bge_small_en: Path, place: Path) -> None:
        (place / "lost+found").mkdir()
        prepare(bge_small_en, place)
        assert names(place) == FILES | {"lost+found"}

    def test_a_path_below_the_home_folder(
        self, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(place))
        monkeypatch.setenv("USERPROFILE", str(place))
        prepare(bge_small_en, "~/made")
        assert names(place / "made") == FILES

    def test_a_relative_path_means_the_folder_that_was_current_at_the_start(
        self, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner: Callable[..., object] = getattr(sys.modules["bge_integrations.prepare"], "_write")  # noqa: B009 - private

        def moving(*arguments: object, **keywords: object) -> object:
            os.chdir("/")
            return inner(*arguments, **keywords)

        monkeypatch.setattr("bge_integrations.prepare._write", moving)
        monkeypatch.chdir(place)
        prepare(bge_small_en, "made")
        assert names(place / "made") == FILES


def test_the_current_folder_is_filled_if_it_is_empty(
    bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    prepare(bge_small_en, ".")
    assert names(place) == FILES
    assert names(place.parent) == {"place"}
    made, expected = (BgeEncoder(folder).encode(["lazy fox"]) for folder in (place, bge_small_en))
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_folder_inside_the_models_own_changes_nothing_of_the_model(bge_small_en: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bge_small_en, tmp_path / "bge-small-en-v1.5")
    manifest = prepare(model, model / "openvino")
    assert names(model) == names(bge_small_en) | {"openvino"}
    again = prepare(model, tmp_path / "again")
    assert manifest.content == again.content
    made, expected = (BgeEncoder(folder).encode(["lazy fox"]) for folder in (model / "openvino", bge_small_en))
    np.testing.assert_allclose(made, expected, atol=1e-5)


class TestFailure:
    @pytest.mark.parametrize(
        ("code", "remedy"),
        [(errno.ENOSPC, "Make room there, or name a folder on another disk"), (errno.EIO, "Name another folder")],
    )
    @pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty"])
    def test_a_disk_that_is_full_leaves_nothing_behind(
        self, code: int, remedy: str, is_there: bool, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(folder: Path, *_: object) -> None:
            (folder / "model.bin").write_bytes(b"the beginning")
            raise OSError(code, os.strerror(code), str(folder / "model.bin"))

        monkeypatch.setattr(prepared, "write_prepared_model", failing)
        target = place / "missing" / "made"
        if is_there:
            target = place / "made"
            target.mkdir()
        with pytest.raises(
            SettingsError, match=rf"output='.*/made' can't be written to: {os.strerror(code)}. {remedy}"
        ):
            prepare(bge_small_en, target)
        assert sorted(place.rglob("*")) == [target][: int(is_there)]

    def test_what_openvino_can_not_write_is_said_too(
        self, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("basic_ios::clear: iostream error")  # as on a full disk

        monkeypatch.setattr("openvino.save_model", failing)
        with pytest.raises(SettingsError, match=r"can't be written to: OpenVINO .*; the disk may be full\. Name"):
            prepare(bge_small_en, place / "made")
        assert names(place) == set()

    def test_a_model_that_can_not_be_had_leaves_no_new_folders(self, place: Path) -> None:
        with pytest.raises(ModelLoadError):
            prepare(place / "no model", place / "missing" / "made")
        assert names(place) == set()


class TestMoving:
    @pytest.fixture(autouse=True)
    def in_no_time(self, quick: None) -> None:
        """Nothing here is a matter of the model."""

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EXDEV, errno.EPERM])
    @pytest.mark.parametrize("of_files_too", [False, True], ids=["folders", "files too"])
    @pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty"])
    def test_files_go_one_by_one_where_a_folder_can_not_be_renamed(
        self,
        code: int,
        of_files_too: bool,
        is_there: bool,
        written: Path,
        bge_small_en: Path,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        order: list[str] = []
        real = output_folder._move_file

        def noting(file: Path, place: Path) -> None:
            order.append(file.name)
            real(file, place)

        monkeypatch.setattr(output_folder, "_move_file", noting)
        refusing(monkeypatch, "rename", lambda path: of_files_too or path.is_dir(), code)
        if is_there:
            (place / "made").mkdir()
        prepare(bge_small_en, place / "made")
        assert names(place) == {"made"}
        assert order[-1] == "bge.json"
        assert {file.name: file.read_bytes() for file in (place / "made").iterdir()} == {
            file.name: file.read_bytes() for file in written.iterdir()
        }

    @pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty"])
    def test_a_finished_model_that_can_not_be_moved_is_kept_and_its_place_named(
        self, is_there: bool, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusing(monkeypatch, "rename", lambda path: path.is_dir() or path.name == "model.xml")
        refusing(monkeypatch, "copyfile", lambda path: path.name == "model.xml" and ".bge-" in str(path), errno.ENOSPC)
        if is_there:
            (place / "made").mkdir()
        with pytest.raises(SettingsError, match=r"finished model can't be moved to .*: No space left") as caught:
            prepare(bge_small_en, place / "made")
        kept = Path(str(caught.value).split("It is in '")[1].split("'")[0])
        assert names(kept) == FILES
        assert {path.name for path in place.rglob("*") if path.is_file()} == names(kept)
        assert len([path for path in place.rglob("*") if path.is_file()]) == len(FILES)

    def test_what_somebody_else_put_there_meanwhile_is_not_overwritten(
        self, written: Path, bge_small_en: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner: Callable[..., object] = getattr(sys.modules["bge_integrations.prepare"], "_write")  # noqa: B009 - private

        def slow(*arguments: object, **keywords: object) -> object:
            (place / "made").mkdir()
            (place / "made" / "bge.json").write_text("theirs")
            return inner(*arguments, **keywords)

        monkeypatch.setattr("bge_integrations.prepare._write", slow)
        with pytest.raises(SettingsError, match=r"model can't be moved to .*: other files are in the folder now"):
            prepare(bge_small_en, place / "made")
        assert (place / "made" / "bge.json").read_text() == "theirs"
        assert names(place / "made") == {"bge.json"}
        [kept] = place.glob(".bge-prepare-*/model")
        assert names(kept) == FILES


class TestRights:
    @pytest.fixture(autouse=True)
    def umask_stays(self) -> Iterator[None]:
        """Gives the umask back."""
        before = os.umask(0o022)
        yield
        os.umask(before)

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
    @pytest.mark.parametrize("way", ["new", "empty", "link", "moved one by one"])
    def test_a_prepared_folder_has_the_rights_of_every_new_folder(
        self,
        umask: int,
        way: str,
        bge_small_en: Path,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> None:
        if (umask, way) != (0o022, "new"):
            request.getfixturevalue("quick")
        os.umask(umask)
        made = place / "made"
        if way in ("empty", "link"):
            made.mkdir()
            (place / "link").symlink_to("made")
        elif way == "moved one by one":
            refusing(monkeypatch, "rename", lambda path: True)
        prepare(bge_small_en, place / "link" if way == "link" else made)
        assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~umask
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in made.iterdir()}
        assert modes == dict.fromkeys(FILES, 0o666 & ~umask)

    @pytest.mark.skipif(os.name != "posix", reason="groups of files are POSIX's")
    def test_a_prepared_folder_belongs_to_the_group_that_its_parent_hands_on(
        self, bge_small_en: Path, place: Path, quick: None
    ) -> None:
        os.umask(0o002)
        others = [group for group in os.getgroups() if group != os.getgid()] or [4711]
        try:
            os.chown(place, -1, others[0])
        except PermissionError:
            pytest.skip("this user has one group only")
        place.chmod(0o2775)
        (place / "plain").mkdir()
        prepare(bge_small_en, place / "made")
        made, plain = ((place / name).stat() for name in ("made", "plain"))
        assert (made.st_mode, made.st_gid) == (plain.st_mode, plain.st_gid)
        assert {file.stat().st_gid for file in (place / "made").iterdir()} == {plain.st_gid}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mapped files are listed on Linux only")
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "pickled"])
def test_the_source_is_no_longer_mapped_when_prepare_returns(
    precision: PreparedPrecision, safetensors: bool, make: MakeCheckpoint, tmp_path: Path
) -> None:
    """On Windows a file that is mapped can be neither deleted nor replaced."""
    model = make("model", modules=("cls", "normalize"), safetensors=safetensors)
    gc.disable()  # so that it is not chance that collects the library's model
    try:
        prepare(model, tmp_path / "made", precision=precision, allow_pickle_weights=True)
        mapped = Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
    assert str(model) not in mapped
