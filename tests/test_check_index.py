"""`bge fingerprint` and `bge check-index`: indexes that are opened by their path, exit codes and JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.cli import app
from bge_integrations.errors import FingerprintError, IndexMismatchError
from bge_integrations.fingerprint import METADATA_KEY, PROBES, Fingerprint
from bge_integrations.indexes.check import Model, check
from bge_integrations.indexes.index import connected
from bge_integrations.indexes.location import open_index
from bge_integrations.indexes.parquet import ParquetIndex
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.adapters import CORPUS
from tests.langchain import stores
from tests.llama_index import stores as llama_index_stores

pytestmark = [
    pytest.mark.usefixtures("kept_minilm"),
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning"),
]

FOLDERS = {"chroma": "chroma", "qdrant": "qdrant", "lancedb": "lance", "milvus": "milvus.db", "faiss": "faiss"}
PASSAGE = ("--document-instruction", "passage: ")


def bge(*arguments: object, code: int = 0) -> str:
    """Runs a command in this process, and returns its output on one line: how it is wrapped depends on the paths."""
    run = CliRunner().invoke(app, [*map(str, arguments)])
    assert run.exit_code == code, run.output + str(run.exception)
    return " ".join(run.stdout.split())


@pytest.fixture(scope="module")
def filled(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of store, filled under the guard."""
    folder = tmp_path_factory.mktemp("stores")
    for name in FOLDERS:
        stores.fill(folder, name, HuggingFaceBgeEmbeddings(model_name=minilm))
    llama_index_stores.fill(folder, "simple", HuggingFaceBgeEmbedding(minilm))
    return folder


@pytest.mark.parametrize("place", [*FOLDERS.values(), "simple"])
def test_every_kind_of_index_is_recognised_and_checked(place: str, filled: Path, minilm: str) -> None:
    found = json.loads(bge("check-index", filled / place, minilm, "--json"))
    assert (found["state"], found["differences"]) == ("equal", [])
    # FAISS of LangChain keeps texts in a pickle, which is not opened.
    assert found["documents"] == (0 if place == "faiss" else len(CORPUS))
    assert found["recorded"] == BgeEncoder(minilm).fingerprint().to_dict()
    refused = json.loads(bge("check-index", filled / place, minilm, *PASSAGE, "--json", code=3))
    assert refused["state"] == "different"
    assert refused["differences"][0] == "another instruction for documents: '' then, 'passage: ' now"


def test_exit_codes_and_messages_in_a_shell(filled: Path, minilm: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from bge_integrations.cli import main; main()", "check-index", *arguments]
        environment = {**os.environ, "PYTHONUTF8": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    refused = run(str(filled / "chroma"), minilm, *PASSAGE)
    assert (refused.returncode, refused.stderr) == (3, "")
    first, *rest = refused.stdout.splitlines()
    assert first.startswith("the Chroma collection 'docs' does not fit (least cosine 0.5")
    assert rest[0] == "- another instruction for documents: '' then, 'passage: ' now"
    assert rest[-1] == "5 of its documents were embedded again"
    unknown = run(str(tmp_path), minilm)
    assert unknown.returncode == 1
    assert "is not an index of a known kind" in " ".join(unknown.stderr.split())


def test_without_a_model_the_record_is_shown(filled: Path, minilm: str) -> None:
    assert json.loads(bge("check-index", filled / "chroma", "--json")) == BgeEncoder(minilm).fingerprint().to_dict()
    shown = bge("check-index", filled / "chroma")
    assert "max length 256" in shown
    assert "document instruction ''" in shown
    for option in (["--max-length", "64"], ["--record"], ["--no-normalize"]):  # else a check without MODEL would pass
        run = CliRunner().invoke(app, ["check-index", str(filled / "chroma"), *option])
        assert run.exit_code == 1
        assert "but no MODEL" in str(run.exception)


def test_an_index_without_a_record_is_checked_by_its_documents_and_recorded_if_asked(
    minilm: str, tmp_path: Path
) -> None:
    stores.fill(tmp_path, "chroma", HuggingFaceBgeEmbeddings(model_name=minilm), guarded=False)
    index = tmp_path / "chroma"
    assert "it has no fingerprint" in bge("check-index", index, minilm)
    assert "the model is recorded now" in bge("check-index", index, minilm, "--record")
    found = json.loads(bge("check-index", index, minilm, "--documents", "0", "--json"))
    assert (found["state"], found["documents"], found["recorded_now"]) == ("equal", 0, False)


def test_an_empty_index_without_a_record_can_not_be_checked(minilm: str, tmp_path: Path) -> None:
    import chromadb

    chromadb.PersistentClient(str(tmp_path)).create_collection("docs")
    assert "so there is nothing to compare" in bge("check-index", tmp_path, minilm, code=1)


def test_of_several_collections_one_must_be_named(tmp_path: Path) -> None:
    import chromadb

    client = chromadb.PersistentClient(str(tmp_path))
    client.create_collection("first")
    client.create_collection("second")
    with pytest.raises(FingerprintError, match=r"has 2 collections or tables .*; give collection="):
        open_index(str(tmp_path))
    with pytest.raises(FingerprintError, match="has no collection or table 'third'"):
        open_index(str(tmp_path), collection="third")
    assert open_index(str(tmp_path), collection="second").name == "the Chroma collection 'second'"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("nowhere", "there is no index 'nowhere'"),
        ("http://user:hunter2@127.0.0.1:1", "http://127.0.0.1:1 can be any server; name its kind"),
        ("http://user:p@hunter2@127.0.0.1:1", "http://127.0.0.1:1 can be any server; name its kind"),
        ("postgresql+psycopg://user:hunter2@127.0.0.1:1/db", "the collections of the database can't be read"),
    ],
)
def test_places_that_can_not_be_opened(location: str, words: str) -> None:
    with pytest.raises(FingerprintError, match=words) as raised:
        open_index(location)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_client_is_closed_if_no_index_is_found_through_it() -> None:
    class Client:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    client = Client()
    with pytest.raises(FingerprintError) as raised, connected(lambda _: client, "http://user:hunter2@host/a"):
        raise OSError("http://user:hunter2@host/a does not answer")
    assert str(raised.value) == "http://host/a can't be opened: http://host/a does not answer"
    with pytest.raises(FingerprintError, match=r"^none$"), connected(lambda _: client, "place"):
        raise FingerprintError("none")
    with pytest.raises(KeyboardInterrupt), connected(lambda _: client, "place"):
        raise KeyboardInterrupt
    assert client.closed == 3
    with connected(lambda _: client, "place") as kept:
        assert kept is client
    assert client.closed == 3


def _write(file: Path, minilm: str, *, instruction: str = "", recorded: bool = True, texts: list[str] = CORPUS) -> None:
    encoder = BgeEncoder(minilm, document_instruction=instruction)
    vectors = encoder.encode_documents(texts).astype(np.float16)
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"id": [*map(str, range(len(texts)))], "text": texts, "vector": array})
    if recorded:
        table = table.replace_schema_metadata({METADATA_KEY: encoder.fingerprint().to_json()})
    parquet.write_table(table, file, row_group_size=2)


def test_parquet_files_are_checked_by_their_schema_and_their_rows(minilm: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", minilm)
    _write(tmp_path / "b.parquet", minilm, texts=CORPUS[::-1])
    for path in (tmp_path, tmp_path / "b.parquet"):
        found = json.loads(bge("check-index", path, minilm, "--json"))
        assert (found["state"], found["documents"]) == ("equal", 10 if path == tmp_path else 5)
        bge("check-index", path, minilm, *PASSAGE, code=3)


def test_rows_of_another_model_are_found_though_the_schema_says_otherwise(minilm: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", minilm, instruction="passage: ", recorded=False)
    table = parquet.read_table(tmp_path / "a.parquet")
    record = BgeEncoder(minilm).fingerprint().to_json()
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: record}), tmp_path / "a.parquet")
    found = json.loads(bge("check-index", tmp_path, minilm, "--json", code=3))
    assert "the vectors of 5 of 5 documents differ" in found["differences"][0]
    bge("check-index", tmp_path, minilm, "--documents", "0")


def test_parquet_files_of_two_models_are_told(minilm: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", minilm)
    _write(tmp_path / "b.parquet", minilm, instruction="passage: ")
    with pytest.raises(IndexMismatchError, match=r"vectors of 2 models or settings: .* of a.parquet, b.parquet differ"):
        ParquetIndex(tmp_path).read()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for open files")
def test_more_parquet_files_than_a_process_may_open(minilm: str, tmp_path: Path) -> None:
    import resource

    _write(tmp_path / "000.parquet", minilm)
    for number in range(1, 100):
        shutil.copy(tmp_path / "000.parquet", tmp_path / f"{number:03d}.parquet")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 40, limits[1]))
    try:
        assert len(ParquetIndex(tmp_path).sample(32)) == 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_parquet_files_can_not_be_recorded_afterwards(minilm: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", minilm, recorded=False)
    report = check(ParquetIndex(tmp_path), Model.of(BgeEncoder(minilm)))
    assert (report.state, report.recorded, report.documents) == ("compatible", None, 5)
    with pytest.raises(FingerprintError, match="finished Parquet files can't be changed"):
        ParquetIndex(tmp_path).write(report.model.to_json())


def test_vectors_without_texts_can_not_be_compared(minilm: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", minilm, recorded=False)
    parquet.write_table(parquet.read_table(tmp_path / "a.parquet").drop_columns(["text"]), tmp_path / "a.parquet")
    with pytest.raises(FingerprintError, match="no text of its documents can be read with its vector"):
        check(ParquetIndex(tmp_path), Model.of(BgeEncoder(minilm)))


def test_a_fingerprint_is_written_and_compared(minilm: str, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    shown = bge("fingerprint", minilm, "--output", file)
    assert "dimension 384" in shown
    assert Fingerprint.from_json(file.read_text()) == BgeEncoder(minilm).fingerprint()
    assert "fits: the same model, settings and vectors" in bge("fingerprint", minilm, "--compare", file)
    found = json.loads(bge("fingerprint", minilm, "--compare", file, "--max-length", 100, "--json", code=3))
    assert found["compared"] == "different"
    assert found["differences"][0] == "texts were cut at 256 tokens then, and are cut at 100 now"
    found = json.loads(bge("fingerprint", minilm, "--no-normalize", "--compare", file, "--json", code=3))
    assert "vectors were normalised then, and are not now" in found["differences"][0]
    assert found["lengths"] != [1.0] * len(PROBES)
    found = json.loads(bge("check-index", file, minilm, "--json"))
    assert (found["state"], found["documents"]) == ("equal", 0)


def test_a_file_that_is_there_is_not_replaced(minilm: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("mine")
    run = CliRunner().invoke(app, ["fingerprint", minilm, "--output", str(tmp_path / "model.json")])
    assert "is there already" in str(run.exception)
    assert (tmp_path / "model.json").read_text() == "mine"
    bge("fingerprint", minilm, "--output", tmp_path / "model.json", "--force")


def test_a_moved_folder_keeps_its_fingerprint(filled: Path, minilm: str, tmp_path: Path) -> None:
    shutil.copytree(filled / "simple", tmp_path / "moved")
    assert json.loads(bge("check-index", tmp_path / "moved", minilm, "--json"))["state"] == "equal"
