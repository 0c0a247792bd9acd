"""What runs on the project's host: the files can be read, and what they call is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def read(name: str) -> Any:  # noqa: ANN401 - any YAML
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_it_can_be_read(name: str) -> None:
    assert isinstance(read(name), dict)


@pytest.mark.parametrize("name", [name for name in FILES if "workflows" in name])
def test_every_command_of_a_workflow_is_there(name: str) -> None:
    steps = [step for job in read(name)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands
    for command in commands:
        first, *others = command.split()
        assert first in ("make", "python") or (ROOT / first).is_file()
        assert first != "make" or set(others) <= TARGETS


def test_pythons_from_the_oldest_that_is_allowed_are_tested() -> None:
    matrix = read(".github/workflows/tests.yml")["jobs"]["newest"]["strategy"]["matrix"]
    required = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert required
    assert matrix["python"][0] == required[1]


@pytest.mark.parametrize("name", [name for name in FILES if "ISSUE" in name and "config" not in name])
def test_a_form_asks_for_what_a_report_needs(name: str) -> None:
    form = read(name)
    assert form["name"]
    assert form["description"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])
