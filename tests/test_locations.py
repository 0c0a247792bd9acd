"""Which folder a name means, and what is said where it means none."""

from __future__ import annotations

import re
import shutil
import traceback
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from packaging.version import Version

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.catalogue import suggest
from bge_integrations.errors import ModelLoadError, ModelNotCachedError, ModelNotFoundError
from bge_integrations.prepare import prepare
from tests.checkpoints import reference_vectors
from tests.conftest import MakeCheckpoint

OLD, NEW = "a" * 40, "b" * 40


class TestSuggestions:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("BAAI/bge-smal-en-v1.5", "BAAI/bge-small-en-v1.5"),
            ("BAAI/bge-small-en-v15", "BAAI/bge-small-en-v1.5"),
            ("BAII/bge-base-en-v1.5", "BAAI/bge-base-en-v1.5"),
            ("BAAI/bge-rerankr-base", "BAAI/bge-reranker-base"),
            ("baai/BGE-M3", "BAAI/bge-m3"),
            ("bge_small_en_v1.5", "BAAI/bge-small-en-v1.5"),
            ("BAAI/bge-small-en-v1.5\n", "BAAI/bge-small-en-v1.5"),
            (" 'bge-m3' ", "BAAI/bge-m3"),
            ("https://huggingface.co/BAAI/bge-m3", "BAAI/bge-m3"),
            ("intfloat/e5-small-v2 ", "intfloat/e5-small-v2"),
            ("BAAI/bge-m3", None),
            ("bge-m3", None),
            ("intfloat/e5-small-v2", None),
            ("thenlper/gte-small", None),
            ("", None),
        ],
    )
    def test_name_what_is_spelt_most_like_it(self, name: str, meant: str | None) -> None:
        assert suggest(name) == meant

    @pytest.mark.parametrize(
        "name",
        [
            "BAAI/bge-smal-en-v1.5",
            pytest.param(
                "BAAI/bge-small-en-v1.5\n",
                marks=pytest.mark.skipif(
                    Version(huggingface_hub.__version__) < Version("1.33"),
                    reason="older hub clients ask for it as it is",
                ),
            ),
            "BAAI/bge-small-en-v1.5/",
        ],
    )
    def test_stand_in_errors(self, name: str) -> None:
        with pytest.raises(ModelLoadError, match=r"Did you mean 'BAAI/bge-small-en-v1\.5'\?"):
            BgeEncoder(name)

    def test_name_a_folder_beside_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "models" / "our-model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        for name in ("models/our-modell", "./models/our-modell", f"{tmp_path}/models/our-modell"):
            with pytest.raises(ModelLoadError, match=f"There is no folder .*Did you mean '{name[:-1]}'"):
                BgeEncoder(name)


class TestOffline:
    def test_a_missing_folder_is_called_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ModelNotCachedError, match=r"There is no folder 'models/ours' \(looked in .*is not in the cache"
        ):
            prepare("models/ours", tmp_path / "prepared")

    def test_an_error_has_no_chain(self) -> None:
        with pytest.raises(ModelNotCachedError) as caught:
            BgeReranker("BAAI/bge-reranker-base")
        shown = "".join(traceback.format_exception(caught.value))
        assert "The above exception" not in shown and "During handling" not in shown  # noqa: PT018 - one idea

    def test_what_is_missing_of_a_snapshot_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._answer(
            monkeypatch,
            errors.IncompleteSnapshotError(
                "The cached snapshot for 'acme/model' (revision 'main', commit a) is incomplete: 1 file(s) are missing "
                "(model.safetensors). Outgoing traffic is disabled.",
                snapshot_path=str(tmp_path),
            ),
        )
        with pytest.raises(
            ModelNotCachedError, match=r"only in part, .*1 file\(s\) are missing \(model\.safetensors\)\."
        ):
            BgeEncoder("acme/model", cache_folder=str(tmp_path))

    def test_the_reason_stands_in_the_message_where_the_hub_cant_be_reached(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = errors.LocalEntryNotFoundError("Got: ConnectError. An error happened")
        error.__cause__ = httpx.ConnectError("Name or service not known")
        self._answer(monkeypatch, error)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(ModelNotCachedError, match="can't be reached: ConnectError: Name or service not known"):
            BgeEncoder("acme/model", cache_folder=str(tmp_path))

    def test_a_full_disk_is_an_error_of_this_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._answer(monkeypatch, OSError(28, "No space left on device"))
        with pytest.raises(ModelLoadError, match=rf"acme/model can't be fetched into {tmp_path}: .*No space left"):
            BgeEncoder("acme/model", cache_folder=str(tmp_path))

    def _answer(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def snapshot_download(*_: Any, **__: Any) -> str:  # noqa: ANN401
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


class TestHubCache:
    """A hub cache with two states of one model."""

    @pytest.fixture
    def repository(self, make: MakeCheckpoint, tmp_path: Path) -> Path:
        folder = tmp_path / "hub" / "models--BAAI--bge-small-en"
        for seed, commit in enumerate((OLD, NEW)):
            make(f"hub/{folder.name}/snapshots/{commit}", modules=("cls", "normalize"), seed=seed)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(OLD)
        (folder / "refs" / "next").write_text(NEW)
        return folder

    def _check(self, encoder: BgeEncoder, snapshot: Path) -> None:
        np.testing.assert_allclose(encoder.encode(["fox"]), reference_vectors(snapshot, ["fox"]), atol=1e-5)

    def test_its_folders_mean_the_snapshot_of_main_or_of_a_revision(self, repository: Path) -> None:
        old, new = (repository / "snapshots" / commit for commit in (OLD, NEW))
        for name in (repository, repository / "snapshots"):
            self._check(BgeEncoder(name, engine="torch"), old)
        assert BgeEncoder(repository, engine="torch").instruction("query").prefix.startswith("Represent this sentence")
        for revision in ("next", NEW):
            self._check(BgeEncoder(repository, engine="torch", revision=revision), new)

    def test_without_a_reference_the_only_snapshot_is_meant_and_several_are_named(self, repository: Path) -> None:
        (repository / "refs" / "main").unlink()
        old, new = (str(repository / "snapshots" / commit) for commit in (OLD, NEW))
        with pytest.raises(ModelNotFoundError, match=f"2 snapshots, .*{re.escape(old)}, {re.escape(new)}"):
            BgeEncoder(repository)
        with pytest.raises(ModelNotFoundError, match="none has the revision 'v9'"):
            BgeEncoder(repository, revision="v9")
        shutil.rmtree(old)
        self._check(BgeEncoder(repository, engine="torch"), Path(new))
        shutil.rmtree(new)
        with pytest.raises(ModelNotFoundError, match=r"contains no snapshot.*hf download BAAI/bge-small-en"):
            BgeEncoder(repository)

    @pytest.mark.parametrize("name", ["hub", "."])
    def test_the_cache_itself_is_no_model(self, repository: Path, name: str) -> None:
        cache = re.escape(str(repository.parent))
        with pytest.raises(
            ModelNotFoundError, match=f"hub cache, which contains BAAI/bge-small-en.*cache_folder='{cache}'"
        ):
            BgeEncoder(repository.parents[1] / name)

    def test_a_model_whose_reference_moved_is_another_one(self, repository: Path) -> None:
        cache = str(repository.parent)
        before = BgeEncoder("BAAI/bge-small-en", cache_folder=cache, engine="torch")
        assert BgeEncoder("bge-small-en", cache_folder=cache, engine="torch").encode(["fox"]).shape == (1, 32)
        assert BgeEncoder("BAAI/bge-small-en", cache_folder=cache, engine="torch").backend is before.backend
        (repository / "refs" / "main").write_text(NEW)
        after = BgeEncoder("BAAI/bge-small-en", cache_folder=cache, engine="torch")
        self._check(after, repository / "snapshots" / NEW)
        self._check(before, repository / "snapshots" / OLD)

    @pytest.mark.parametrize("pickles", [False, True])
    def test_a_fetch_that_was_interrupted_is_called_so(self, repository: Path, pickles: bool) -> None:
        (repository / "snapshots" / OLD / "model.safetensors").unlink()
        expected = r"It was fetched only in part\. Fetch it again with `hf download BAAI/bge-small-en`\."
        with pytest.raises(ModelNotFoundError, match=expected) as caught:
            BgeEncoder("BAAI/bge-small-en", cache_folder=str(repository.parent), allow_pickle_weights=pickles)
        assert ("pass allow_pickle_weights=True" in str(caught.value)) is not pickles
        (repository / "blobs").mkdir()
        (repository / "blobs" / "1234.incomplete").touch()
        with pytest.raises(ModelNotFoundError, match=r"fetched only in part: .*1234\.incomplete is left") as caught:
            BgeEncoder("BAAI/bge-small-en", cache_folder=str(repository.parent), allow_pickle_weights=pickles)
        assert "allow_pickle_weights" not in str(caught.value)

    def test_the_heads_of_bge_m3_may_be_missing_where_only_vectors_are_wanted(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = repository / "snapshots" / OLD

        def snapshot_download(_: str, *, allow_patterns: list[str], **__: Any) -> str:  # noqa: ANN401
            if "sparse_linear.pt" in allow_patterns:
                raise errors.IncompleteSnapshotError("sparse_linear.pt is missing", snapshot_path=str(snapshot))
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        self._check(BgeEncoder("BAAI/bge-small-en", cache_folder=str(repository.parent), engine="torch"), snapshot)
