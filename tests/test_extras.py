"""What isn't installed is named with a command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
from importlib.machinery import ModuleSpec

import pytest
from packaging.requirements import Requirement

from bge_integrations import BgeEncoder
from bge_integrations._optional import SLIM, TORCH, WHOLE, requirement
from bge_integrations.backend.engines.choice import ENGINE_KINDS, EngineKind, candidates
from bge_integrations.cli.environment import describe
from bge_integrations.errors import EngineNotAvailableError, MissingExtraError
from tests.test_package import run_python


def installed_by(command: str) -> Requirement:
    """Reads a command, and checks that pip can make something of it: the package, and an extra that it has."""
    *pip, wanted = shlex.split(command)
    assert pip == ["pip", "install"]
    requirement = Requirement(wanted)
    assert requirement.name == "bge-integrations"
    extras = importlib.metadata.metadata("bge-integrations").get_all("Provides-Extra") or []
    assert requirement.extras <= set(extras)
    return requirement


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that are not found; to be added to."""
    hidden: set[str] = set()
    find = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in hidden else find(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find_others)
    return hidden


@pytest.mark.parametrize("kind", ENGINE_KINDS, ids=lambda kind: kind.name)
def test_an_engine_names_its_extra_or_the_package_itself(minilm: str, without: set[str], kind: EngineKind) -> None:
    without.add(kind.package)
    with pytest.raises(MissingExtraError, match=f"{kind.package} is not installed") as caught:
        BgeEncoder(minilm, device="cpu", engine=kind.name)  # type: ignore[arg-type]
    message, _, command = str(caught.value).partition(". Install it with: ")
    assert installed_by(command).extras == set()
    told = describe()["engines"][kind.name]
    assert told == f"not installed: {command}"
    assert "None" not in message + json.dumps(describe()["engines"])


def test_int8_without_openvino_names_the_package(minilm: str, without: set[str]) -> None:
    without.add("openvino")
    with pytest.raises(EngineNotAvailableError) as caught:
        BgeEncoder(minilm, device="cpu", precision="int8")
    _, command = str(caught.value).split("openvino is not installed. Install it with: ")
    assert installed_by(command.split(";")[0]).extras == set()


def test_no_engine_at_all_names_what_each_needs(minilm: str, without: set[str]) -> None:
    without.update(kind.package for kind in ENGINE_KINDS)
    with pytest.raises(EngineNotAvailableError) as caught:
        BgeEncoder(minilm, device="cpu", local_files_only=True)
    assert "None" not in str(caught.value)
    for kind in ENGINE_KINDS:
        assert f"{kind.package} is not installed. Install it with: {kind.remedy}" in str(caught.value)
    assert describe()["devices"].keys() == {"cpu"}


@pytest.mark.parametrize("library", ["torch", "transformers", "sentence_transformers"])
def test_a_library_that_loads_the_model_is_named_too(minilm: str, library: str) -> None:
    code = f"""
from bge_integrations import BgeEncoder
from bge_integrations._optional import SLIM, TORCH, WHOLE, requirement
from bge_integrations.errors import MissingExtraError
from bge_integrations.settings import TransformersKwargs
try:
    BgeEncoder({minilm!r}, device="cpu", transformers_kwargs=TransformersKwargs.of(model={{"low_cpu_mem_usage": True}}))
except MissingExtraError as error:
    print(error)
"""
    said = run_python(code, without=[library], warnings="ignore").strip()
    why = f"{minilm} needs more than OpenVINO, since transformers_kwargs are for transformers"
    assert said == f"{why}: {library} is not installed. Install it with: pip install bge-integrations"
    installed_by(said.rsplit(": ", 1)[1])


@pytest.mark.parametrize(
    ("installed", "extra", "expected"),
    [
        ([WHOLE], None, "bge-integrations"),
        ([WHOLE], TORCH, "bge-integrations"),
        ([WHOLE], "prepare", "'bge-integrations[prepare]'"),
        ([SLIM], None, "bge-integrations-slim"),
        ([SLIM], TORCH, "'bge-integrations-slim[torch]'"),
        ([SLIM], "prepare", "'bge-integrations-slim[prepare]'"),
        ([WHOLE, SLIM], TORCH, "bge-integrations"),
        ([], "prepare", "'bge-integrations[prepare]'"),
    ],
)
def test_the_distribution_that_is_there_is_named(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], extra: str | None, expected: str
) -> None:
    monkeypatch.setattr("bge_integrations._optional.installed_distributions", lambda: installed)
    assert requirement(extra) == expected


def test_a_model_that_no_installed_engine_knows_names_what_runs_it(without: set[str]) -> None:
    without.update(kind.package for kind in ENGINE_KINDS if kind.name != "openvino")
    with pytest.raises(MissingExtraError, match="can't run this model") as caught:
        list(candidates("auto", "cpu", "float32", known_architecture=False))
    assert "BERT or XLM-RoBERTa encoder" in str(caught.value)
    installed_by(str(caught.value).rsplit(": ", 1)[1])


@pytest.mark.parametrize(
    ("installed", "named"), [([WHOLE], [WHOLE]), ([SLIM], [SLIM]), ([], [WHOLE]), ([WHOLE, SLIM], [WHOLE, SLIM])]
)
def test_bge_info_tells_which_distribution_is_there(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], named: list[str]
) -> None:
    monkeypatch.setattr("bge_integrations.cli.environment.installed_distributions", lambda: installed)
    versions = describe()["versions"]
    assert [name for name in (WHOLE, SLIM) if name in versions] == named
    assert ("pip uninstall -y bge-integrations-slim" in versions.get(SLIM, "")) == (len(named) == 2)
