"""Loading shows nothing that other libraries show, and leaves these libraries as they were."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import loading_report
from transformers.utils import logging as transformers_logging

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.display.quiet import quiet_nncf, quiet_transformers
from bge_integrations.backend.engines.openvino.library import import_quantizer
from bge_integrations.errors import ModelLoadError
from bge_integrations.prepare import prepare
from tests.conftest import MakeCheckpoint
from tests.decoder_checkpoints import make_embedder
from tests.test_adapters_with_a_base import make_adapter


@pytest.fixture
def reports() -> Iterator[list[str]]:
    """What transformers logs, which it writes to standard error itself."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logging.add_handler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)  # its own function asserts the contrary in 5.6


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Afterwards transformers and nncf are as they were."""

    import_quantizer()  # its import sets the level of its log

    def state() -> tuple[object, ...]:
        log = logging.getLogger("nncf")
        return (
            transformers_logging._tqdm_active,
            transformers_logging._tqdm_hook,
            transformers_logging.get_verbosity(),
            vars(type(transformers_logging.tqdm))["__call__"],
            vars(loading_report.LoadStateDictInfo)["create_loading_report"],
            [*log.filters],
            log.level,
            sys.stdout,
        )

    before = state()
    yield
    assert state() == before


def _with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def _set(folder: Path, **config: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def _loads(make: MakeCheckpoint, tmp_path: Path, rerankers: Path, m3: Path) -> dict[str, Callable[[], object]]:
    whole = make("bge-small-en")
    headed = _with_weights(make("headed/bge-small-en"), lambda saved: {**saved, "cls.predictions.bias": torch.zeros(3)})
    without_pooler = _with_weights(
        make("bare/bge-m3", "xlm-roberta"),
        lambda saved: {f"roberta.{name}": value for name, value in saved.items() if "pooler" not in name},
    )
    adapter = make_adapter(tmp_path / "adapter", whole)
    decoder = make_embedder(tmp_path, "bge-code-v1")
    return {
        "encoder": lambda: BgeEncoder(whole, device="cpu", engine="torch"),
        "int8": lambda: BgeEncoder(whole, device="cpu", precision="int8"),
        "client": lambda: BgeEncoder(whole, device="cpu").client,
        "with a head": lambda: BgeEncoder(headed, device="cpu", engine="torch"),
        "without pooler": lambda: BgeEncoder(without_pooler, device="cpu", engine="torch"),
        "adapter": lambda: BgeEncoder(adapter, device="cpu"),
        "decoder": lambda: BgeEncoder(decoder, device="cpu", precision="bfloat16"),
        "reranker": lambda: BgeReranker(rerankers, device="cpu", engine="torch"),
        "bge-m3": lambda: BgeM3Encoder(m3, device="cpu", engine="torch"),
    }


def test_no_load_shows_anything(
    make: MakeCheckpoint,
    tmp_path: Path,
    bge_reranker_base: Path,
    bge_m3: Path,
    reports: list[str],
    unchanged: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    loads = _loads(make, tmp_path, bge_reranker_base, bge_m3)
    capfd.readouterr()
    for what, load in loads.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load()
        captured = capfd.readouterr()
        assert (what, captured.out, captured.err, reports) == (what, "", "", [])


def test_layers_that_a_configuration_leaves_out_are_reported(
    make: MakeCheckpoint, reports: list[str], unchanged: None
) -> None:
    BgeEncoder(_set(make("bge-small-en"), num_hidden_layers=1), device="cpu", engine="torch")
    assert any("encoder.layer.1" in report and "UNEXPECTED" in report for report in reports)


def test_why_weights_do_not_fit_is_reported(make: MakeCheckpoint, reports: list[str], unchanged: None) -> None:
    with pytest.raises(ModelLoadError):
        BgeEncoder(_set(make("bge-small-en"), intermediate_size=77), device="cpu", engine="torch")
    assert any("MISMATCH" in report for report in reports)


class TestState:
    def test_is_left_as_it_was_where_loading_fails(self, make: MakeCheckpoint, unchanged: None) -> None:
        damaged = make("bge-small-en")
        (damaged / "tokenizer.json").write_text('{"damaged": true}')
        with pytest.raises(ModelLoadError):
            BgeEncoder(damaged, device="cpu", engine="torch")

    def test_is_left_as_it_was_where_loads_overlap(self, unchanged: None) -> None:
        """The first one to begin ends first."""
        inside, may_leave = threading.Event(), threading.Event()

        def later() -> None:
            with quiet_transformers():
                inside.set()
                assert may_leave.wait(30)

        thread = threading.Thread(target=later)
        with quiet_transformers():
            thread.start()
            assert inside.wait(30)
        may_leave.set()
        thread.join()

    def test_bars_of_other_threads_and_later_ones_are_shown(
        self, unchanged: None, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def show() -> None:
            list(transformers_logging.tqdm(range(2), desc="of another"))

        with quiet_transformers():
            list(transformers_logging.tqdm(range(2), desc="of ours"))
            thread = threading.Thread(target=show)
            thread.start()
            thread.join()
            with quiet_transformers():
                pass
            list(transformers_logging.tqdm(range(2), desc="of ours"))
        shown = capfd.readouterr().err
        assert "of another" in shown
        assert "of ours" not in shown
        list(transformers_logging.tqdm(range(2), desc="of ours"))
        assert "of ours" in capfd.readouterr().err

    def test_what_an_application_has_set_stays(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[object] = []

        def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            seen.append(kwargs.get("desc"))
            return factory(*args, **kwargs)

        monkeypatch.setattr(transformers_logging, "_tqdm_hook", hook)
        monkeypatch.setattr(transformers_logging, "_tqdm_active", False)
        BgeEncoder(bge_small_en, device="cpu", engine="sentence-transformers", threads=1)
        assert transformers_logging._tqdm_hook is hook
        assert not transformers_logging.is_progress_bar_enabled()
        list(transformers_logging.tqdm(range(2), desc="theirs"))
        assert seen == ["theirs"]

    def test_a_method_that_somebody_else_replaces_meanwhile_is_left_to_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind, name = type(transformers_logging.tqdm), "__call__"
        monkeypatch.setattr(kind, name, vars(kind)[name])  # is put back at the end

        def theirs(*_: object, **__: object) -> None:
            pass

        with quiet_transformers():
            setattr(kind, name, theirs)
        assert vars(kind)[name] is theirs

    def test_a_version_without_these_methods_loads_all_the_same(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(loading_report.LoadStateDictInfo, "create_loading_report")
        with quiet_transformers():
            pass


class TestQuantiser:
    def test_prints_of_other_threads_go_where_they_belong(
        self, unchanged: None, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with quiet_nncf():
            thread = threading.Thread(target=print, args=("of another thread",))
            thread.start()
            thread.join()
        assert capfd.readouterr().out == "of another thread\n"

    def test_static_quantisation_shows_nothing(
        self, make: MakeCheckpoint, tmp_path: Path, unchanged: None, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = make("bge-small-en")
        capfd.readouterr()
        prepare(folder, tmp_path / "made", precision="int8", quantization="static")
        assert capfd.readouterr() == ("", "")

    def test_works_without_standard_streams(
        self, make: MakeCheckpoint, tmp_path: Path, unchanged: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make("bge-small-en")
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", None)
            patched.setattr(sys, "stdout", None)
            assert prepare(folder, tmp_path / "made", precision="int8").quantization == "dynamic"
