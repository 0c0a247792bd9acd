"""Contenders of the benchmarks that run in another Python: this one stands in for it. Never how fast anything is."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import cold, elsewhere, peers
from benchmarks.contenders import CONTENDERS, Contender, by_name
from benchmarks.elsewhere import at_home, start
from benchmarks.entrants import ElsewhereError, Loaded, Place
from benchmarks.noise import Reference
from benchmarks.onnx_models import exported, load_onnxruntime
from benchmarks.tables import print_results

REPOSITORY = Path(__file__).parents[1]
HERE = Path(sys.executable)
OURS = by_name("bge-openvino-float32")
PATIENCE = 120
PARENT = """
import sys
from pathlib import Path
import psutil
from benchmarks.contenders import by_name
from benchmarks.elsewhere import start
from benchmarks.entrants import Place
loaded = start(Path(sys.executable), by_name("bge-openvino-float32"), Place(Path(sys.argv[1]), Path(sys.argv[2])))
print(psutil.Process().children()[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def place(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(bge_small_en, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def started(place: Place) -> Loaded:
    return start(HERE, OURS, place)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


class TestProcess:
    def test_vectors_are_those_of_this_process(self, started: Loaded, place: Place) -> None:
        documents = ["a vector", "", "an example with 漢字 and\nlines", "a" * 3000]
        here = OURS.load(place)
        found = started.documents(documents)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(here.documents(documents), np.float32))
        np.testing.assert_array_equal(started.query("a query"), np.asarray(here.query("a query"), np.float32))

    def test_the_way_there_and_back_is_measured(self, started: Loaded) -> None:
        started.documents(["one", "two"])
        started.query("three")
        assert started.hand_over is not None
        cost = started.hand_over()
        assert cost["query_ms"] > 0
        assert 0 < cost["part_of_documents"] < 1

    def test_what_fails_over_there_is_one_line_here_and_the_process_goes_on(self, started: Loaded) -> None:
        with pytest.raises(ElsewhereError, match=r"^\w+: [^\n]+$"):
            started.documents([])  # no row has no width
        assert len(started.documents(["one"])) == 1

    def test_a_model_that_can_not_be_loaded_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(ElsewhereError, match=r"^ModelNotFoundError: [^\n]+$"):
            start(HERE, OURS, Place(tmp_path / "nowhere", tmp_path))

    def test_a_python_that_ends_is_said_with_what_it_wrote(self, place: Place) -> None:
        with pytest.raises(ElsewhereError, match="StopIteration"):
            start(HERE, dataclasses.replace(OURS, name="nobody"), place)
        with pytest.raises(ElsewhereError, match="ended with status 1"):
            start(Path("/bin/false"), OURS, place)

    def test_it_ends_when_nothing_holds_it(self, place: Place) -> None:
        before = children()
        loaded = start(HERE, OURS, place)
        (process,) = children() - before
        del loaded
        gc.collect()
        assert not process.is_running()

    @pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
    def test_it_ends_with_its_parent_however_that_ends(self, place: Place) -> None:
        arguments = [sys.executable, "-c", PARENT, str(place.model), str(place.workdir)]
        with subprocess.Popen(arguments, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            parent.send_signal(signal.SIGKILL)
            child.wait(PATIENCE)
        assert not child.is_running()

    def test_it_imports_neither_this_package_nor_what_that_needs(self) -> None:
        code = "import sys, benchmarks.elsewhere, benchmarks.fresh, benchmarks.onnx_models, benchmarks.peers\n"
        code += "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
        finished = subprocess.run([HERE, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert not {"bge_integrations", "torch", "psutil", "pydantic", "rich"} & set(finished.stdout.split())


class TestWhoRunsWhere:
    def test_the_first_python_that_has_the_package_runs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(elsewhere, "installed", lambda _: None)  # nothing is installed in this one
        wanted = dataclasses.replace(OURS, needs="numpy")
        (placed,) = at_home([wanted], [HERE])
        assert placed.python == HERE
        assert placed.load != wanted.load

    def test_what_is_installed_here_runs_here(self) -> None:
        wanted = [OURS, dataclasses.replace(OURS, needs="numpy")]
        assert at_home(wanted, [HERE]) == wanted

    def test_what_is_installed_nowhere_says_what_it_needs(self, place: Place) -> None:
        (placed,) = at_home([dataclasses.replace(OURS, needs="no-such-package")], [HERE])
        with pytest.raises(ModuleNotFoundError, match="it needs no-such-package: see --peers-python"):
            placed.load(place)

    @pytest.mark.parametrize(("name", "why"), [("nothing", "can't be started"), ("false", "ended with status 1")])
    def test_what_is_no_python_is_refused(
        self, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for variable in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
            monkeypatch.setenv(variable, "1")  # given back what they were afterwards
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--peers-python", f"/bin/{name}", "--workdir", str(tmp_path)])
        with pytest.raises(SystemExit):
            command.main()
        assert why in capsys.readouterr().err

    def test_a_cold_start_takes_the_python_of_the_contender(self, place: Place) -> None:
        prepared: list[Place] = []
        contender = dataclasses.replace(OURS, python=Path("/bin/false"), prepare=prepared.append)
        found = cold.measure([contender], place, repetitions=1, reference=Reference())
        assert found["left_out"] == {OURS.name: "ended with status 1"}
        assert prepared == [place]

    def test_requirements_name_what_contenders_need(self) -> None:
        listed = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "benchmarks").glob("peers*.txt"))
        pinned = set(re.findall(r"^([\w-]+)(?:\[.*\])?==[\d.]+$", listed, re.MULTILINE))
        needed = {contender.needs for contender in CONTENDERS} - {""}
        assert needed
        assert needed <= pinned


class TestFiles:
    def test_calibration_texts_are_lines_of_json(self, place: Place) -> None:
        folder = peers.calibration(place)
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        assert len({json.loads(line)["text"] for line in lines}) == len(lines) > 100
        assert peers.calibration(place) == folder

    def test_the_hub_cache_has_the_files_under_a_commit(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", "")
        name = peers._in_hub_cache(place, place.model)
        assert name == "local/bge-small-en-v1.5"
        (snapshot,) = Path(os.environ["HF_HUB_CACHE"]).glob("models--local--bge-small-en-v1.5/snapshots/*")
        assert re.fullmatch("[0-9a-f]{40}", snapshot.name)
        assert (snapshot / "config.json").resolve() == (place.model / "config.json").resolve()

    @pytest.mark.slow
    @pytest.mark.parametrize(("precision", "least"), [("float32", 0.999999), ("float16", 0.99999), ("int8", 0.99)])
    def test_graphs_of_each_precision_give_the_vectors(self, precision: str, least: float, place: Place) -> None:
        onnx = pytest.importorskip("onnx")
        documents = ["a vector", "a somewhat longer text about vectors and what is stored of them"]
        found = np.asarray(load_onnxruntime(precision, place).documents(documents))
        expected = np.asarray(OURS.load(place).documents(documents))
        assert (found * expected).sum(axis=1).min() > least
        graph = onnx.load(exported(place, precision) / "model.onnx").graph
        operations = {node.op_type for node in graph.node}
        assert {"float32": "Attention", "float16": "FastGelu", "int8": "QAttention"}[precision] in operations


def test_a_table_says_what_the_way_costs() -> None:
    cost = {"query_ms": 0.25, "part_of_documents": 0.0042}
    agreement = {"mean_cosine": 1.0, "least_cosine": 1.0}
    measured = {
        "shape": {"layers": 2, "width": 64},
        "weights": "random",
        "contenders": {"here": agreement, "there": {**agreement, "hand_over": cost}},
    }
    machine = {"instructions": [], "processor": "one", "cores": 2, "memory_gib": 4}
    console = Console(file=io.StringIO(), width=130)
    print_results(console, {"machine": machine, "rounds": 1, "profile": "quick", "shapes": {"tiny": measured}})
    assert isinstance(console.file, io.StringIO)
    assert "there runs in another process: 0.25 ms of each query, and 0.42%" in console.file.getvalue()


def test_ours_need_no_other_environment() -> None:
    assert all(not contender.needs for contender in CONTENDERS if contender.is_ours)
    assert isinstance(by_name("embed-anything"), Contender)
