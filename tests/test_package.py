"""The package as it is installed and imported: what it loads, what it needs, what it ships."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import tokenizers

import bge_integrations
from bge_integrations import BgeEncoder, errors
from bge_integrations._optional import require
from bge_integrations.backend.machine.versions import version_of
from bge_integrations.cli.environment import describe
from bge_integrations.errors import MissingExtraError
from bge_integrations.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {"numpy", "torch", "transformers", "sentence_transformers", "openvino", "pydantic", "rich", "typer"}
FRAMEWORKS = {"langchain_core", "llama_index"}

# An interpreter in which the modules named cannot be found, as where they were never installed.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Without())
"""


def run_python(code: str, *arguments: str, without: Collection[str] = (), warnings: str = "default") -> str:
    """Runs code in an interpreter of its own, away from the checkout, and returns what it wrote to stdout."""
    script = WITHOUT.format(blocked=sorted(without)) + code if without else code
    process = subprocess.run(
        [sys.executable, "-W", warnings, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(sys.prefix),
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def modules_after(code: str, *, without: Collection[str] = (), warnings: str = "default") -> set[str]:
    """The names of all modules that are loaded once the code has run."""
    output = run_python(
        f"{code}\nimport json, sys\nsys.stdout.write(json.dumps(sorted(sys.modules)))",
        without=without,
        warnings=warnings,
    )
    return set(json.loads(output))


_ALWAYS = {"bge_integrations", "bge_integrations._lazy"}


def test_import_loads_nothing_but_the_standard_library() -> None:
    added = modules_after("import bge_integrations", warnings="error") - modules_after("pass")

    assert {name for name in added if name.split(".")[0] not in sys.stdlib_module_names} == _ALWAYS


def test_listing_the_public_names_loads_nothing() -> None:
    loaded = modules_after("import bge_integrations; dir(bge_integrations); bge_integrations.__all__")

    assert {name for name in loaded if name.startswith("bge_integrations")} == _ALWAYS


def test_a_model_is_looked_up_without_numpy_torch_or_a_framework() -> None:
    loaded = modules_after("from bge_integrations import find_model; assert find_model('BAAI/bge-small-en-v1.5')")

    assert not loaded & (HEAVY | FRAMEWORKS)


def test_encoder_class_is_imported_without_torch_or_a_framework() -> None:
    loaded = modules_after("from bge_integrations import BgeEncoder")

    assert not loaded & ({"torch", "transformers", "sentence_transformers", "openvino"} | FRAMEWORKS)


def test_every_public_name_can_be_used_and_is_listed() -> None:
    for name in bge_integrations.__all__:
        assert getattr(bge_integrations, name) is not None
        assert name in dir(bge_integrations)


def test_unknown_name_raises_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'bge_integrations' has no attribute 'BgeEncodr'"):
        bge_integrations.BgeEncodr  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize(
    ("adapter", "framework", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index", "llama-index")],
)
def test_missing_framework_raises_import_error_with_the_command_that_installs_it(
    adapter: str, framework: str, extra: str
) -> None:
    message = run_python(
        f"""
try:
    import bge_integrations.{adapter}
except ImportError as error:
    sys.stdout.write(f"{{type(error).__name__}}: {{error}}")
""",
        without={framework},
    )

    assert message.startswith("MissingExtraError: ")
    assert f"pip install 'bge-integrations[{extra}]'" in message


@pytest.mark.parametrize(
    ("adapter", "name", "other"),
    [
        ("langchain", "HuggingFaceBgeEmbeddings", "llama_index"),
        ("llama_index", "HuggingFaceBgeEmbedding", "langchain_core"),
    ],
)
def test_each_adapter_works_where_only_its_own_framework_is_installed(adapter: str, name: str, other: str) -> None:
    loaded = modules_after(f"from bge_integrations.{adapter} import {name}", without={other})

    assert f"bge_integrations.{adapter}.embeddings" in loaded
    assert other not in loaded
    assert "torch" not in loaded


def test_encoder_works_where_no_framework_is_installed() -> None:
    run_python("from bge_integrations import BgeEncoder, MODELS", without=FRAMEWORKS)


def test_missing_part_of_an_installed_package_is_a_missing_extra() -> None:
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'bge-integrations[some-extra]'")):
        require("importlib.no_such_part", extra="some-extra")


@pytest.mark.parametrize("missing", ["no_such_dependency", "damaged_framework.no_such_part"])
def test_error_inside_an_installed_framework_is_raised_as_it_is(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged_framework").mkdir()
    (tmp_path / "damaged_framework" / "__init__.py").write_text(f"import {missing}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError) as caught:
        require("damaged_framework", extra="some-extra")

    assert caught.value.name == missing
    assert not isinstance(caught.value, MissingExtraError)


def test_type_information_ships_with_the_package() -> None:
    assert importlib.resources.files("bge_integrations").joinpath("py.typed").is_file()


def test_version_is_stated_once_where_the_build_looks_for_it() -> None:
    file = re.search(r'^\[tool.hatch.version]\npath = "(.+)"$', _project_file(), re.MULTILINE)

    assert file is not None
    assert re.search(r'^dynamic = \["version"]$', _project_file(), re.MULTILINE)
    stated = re.search(r'^__version__ = "(.+)"$', (ROOT / file.group(1)).read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert bge_integrations.__version__ == importlib.metadata.version("bge-integrations") == stated.group(1)


def _project_file() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_works_where_packages_have_no_metadata(
    bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in layers of cloud functions, from which `*.dist-info` was deleted."""
    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", _no_metadata)
    monkeypatch.setenv("BGE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("tokenizers")

    BgeEncoder(bge_small_en, device="cpu", engine="openvino").encode_documents(["fox"])  # makes a graph
    prepare(bge_small_en, tmp_path / "prepared")
    BgeEncoder(tmp_path / "prepared", device="cpu").encode_documents(["fox"])

    made_by = json.loads((tmp_path / "prepared" / "bge.json").read_text(encoding="utf-8"))["versions"]
    assert made_by["bge-integrations"] == bge_integrations.__version__
    assert made_by["tokenizers"] == tokenizers.__version__
    assert made_by["openvino"] != "unknown"
    versions = describe()["versions"]
    assert versions["tokenizers"] == tokenizers.__version__
    assert "not installed" not in versions.values()


def test_a_package_that_says_its_version_nowhere_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of("tokenizers") == importlib.metadata.version("tokenizers")
    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", _no_metadata)
    monkeypatch.delattr(tokenizers, "__version__")
    assert version_of("tokenizers") is None
    assert version_of("no-such-package") is None


def _no_metadata(name: str) -> importlib.metadata.Distribution:
    raise importlib.metadata.PackageNotFoundError(name)


def test_command_is_installed_and_knows_its_subcommands() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="bge")

    assert command.value == "bge_integrations.cli:main"
    assert callable(command.load())


def test_former_names_of_errors_are_still_there() -> None:
    assert errors.NonFiniteEmbeddingError is errors.NonFiniteOutputError
    assert errors.EncoderClosedError is errors.ModelClosedError
