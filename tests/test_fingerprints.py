"""The fingerprint of what made an index: what it records, what it notices, and how sure it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder
from bge_integrations.errors import FingerprintError, TruncationError
from bge_integrations.fingerprint import LEAST_COSINE, PROBES, Fingerprint
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare
from tests.conftest import MakeCheckpoint

pytestmark = pytest.mark.usefixtures("kept_minilm")


@pytest.fixture(scope="module")
def recorded(minilm: str) -> Fingerprint:
    """The fingerprint of the real weights as an index keeps it."""
    return Fingerprint.from_json(BgeEncoder(minilm).fingerprint().to_json())


def test_the_probes_never_change_within_a_format() -> None:
    """Fingerprints in existing indexes were made with them."""
    digest = hashlib.sha256("\0".join(PROBES).encode()).hexdigest()
    assert digest == "0dee982a08e7f6fc825ae9effbe840cbd0d9fd6a9701f32c99ae21e028d46082"


def test_it_is_small_and_says_what_the_vectors_depend_on(recorded: Fingerprint) -> None:
    assert len(recorded.to_json()) < 1500
    assert (recorded.dimension, recorded.pooling, recorded.normalizes, recorded.max_length) == (384, "mean", True, 256)
    assert (recorded.document_instruction, recorded.precision) == ("", "float32")
    assert list(json.loads(recorded.to_json())) == sorted(recorded.to_dict())


def test_digests_are_those_of_the_files(recorded: Fingerprint, minilm: str) -> None:
    weights = hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest()
    expected = hashlib.sha256(f"model.safetensors\0{weights}\n".encode()).hexdigest()
    assert recorded.weights == expected[:32]


def test_the_same_model_is_equal_also_in_another_process(recorded: Fingerprint, minilm: str) -> None:
    code = f"from bge_integrations import BgeEncoder; print(BgeEncoder({minilm!r}).fingerprint().to_json())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = recorded.compare(Fingerprint.from_json(other))
    assert (found.state, found.differences) == ("equal", ())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "torch"}, "another engine: openvino then, torch now"),
        ({"engine": "sentence-transformers"}, "another engine: openvino then, sentence-transformers now"),
        ({"precision": "bfloat16"}, "another precision: float32 then, bfloat16 now"),
        ({"precision": "bfloat16", "engine": "torch"}, "another precision: float32 then, bfloat16 now"),
    ],
    ids=str,
)
def test_another_precision_or_engine_is_compatible(
    options: dict[str, Any], words: str, recorded: Fingerprint, minilm: str
) -> None:
    found = recorded.compare(BgeEncoder(minilm, **options).fingerprint())
    assert found.state == "compatible"
    assert words in found.differences
    assert min(found.cosines) > 0.9998


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalize": False}, "vectors were normalised then, and are not now (lengths 1 then, 2.2 to 8.08 now)"),
        ({"document_instruction": "passage: "}, "another instruction for documents: '' then, 'passage: ' now"),
        ({"document_instruction": " "}, "another instruction for documents: '' then, ' ' now"),
        ({"max_length": 240}, "texts were cut at 256 tokens then, and are cut at 240 now"),
        ({"max_length": 16}, "texts were cut at 256 tokens then, and are cut at 16 now"),
        ({"pooling": "cls"}, "another pooling: mean then, cls now"),
        ({"truncate_dim": 128}, "vectors had 384 dimensions then, and have 128 now"),
    ],
    ids=str,
)
def test_settings_that_change_vectors_are_told(
    options: dict[str, Any], words: str, recorded: Fingerprint, minilm: str
) -> None:
    other = BgeEncoder(minilm, **options).fingerprint()
    for found in (recorded.compare(other), other.compare(recorded)):
        assert found.state == "different"
    assert words in recorded.compare(other).differences


def test_without_facts_the_probes_alone_show_where_texts_are_cut(recorded: Fingerprint, minilm: str) -> None:
    """As for a server that does not tell its limit."""
    vectors = BgeEncoder(minilm, max_length=200, on_truncation="ignore").encode_documents(PROBES)
    found = recorded.compare(Fingerprint.of_vectors(vectors, model="model"))
    assert found.state == "different"
    assert found.differences[0].endswith("only the long text, so texts are cut at another length")
    assert sum(cosine < LEAST_COSINE for cosine in found.cosines) == 1


def test_without_facts_the_probes_alone_show_an_instruction(recorded: Fingerprint, minilm: str) -> None:
    vectors = BgeEncoder(minilm, document_instruction="passage: ", on_truncation="ignore").encode_documents(PROBES)
    found = recorded.compare(Fingerprint.of_vectors(vectors, model="model"))
    assert found.state == "different"
    assert max(found.cosines[:3]) < 0.98


@pytest.mark.slow
def test_int8_differs_unless_the_user_asks_for_less(recorded: Fingerprint, minilm: str) -> None:
    other = BgeEncoder(minilm, precision="int8").fingerprint()
    found = recorded.compare(other)
    assert found.state == "different"
    assert "another precision: float32 then, int8 now" in found.differences
    assert recorded.compare(other, least_cosine=0.98).state == "compatible"


def test_another_model_and_a_fine_tuned_one(make: MakeCheckpoint, bge_small_en: Path) -> None:
    then = BgeEncoder(bge_small_en).fingerprint()
    tuned = make("bge-small-en-v1.5", modules=("cls", "normalize"), seed=7)
    found = then.compare(BgeEncoder(tuned).fingerprint())
    assert found.state == "different"
    assert found.differences[0].startswith("the weights of bge-small-en-v1.5 have changed: fine-tuned or saved again")
    elsewhere = make("other", modules=("cls", "normalize"), seed=7)
    found = then.compare(BgeEncoder(elsewhere).fingerprint())
    assert found.state == "different"
    assert found.differences[0] == "another model: 'bge-small-en-v1.5' then, 'other' now"


def test_the_same_weights_in_another_file_are_compatible(make: MakeCheckpoint, bge_small_en: Path) -> None:
    then = BgeEncoder(bge_small_en).fingerprint()
    pickled = make("bge-small-en-v1.5", modules=("cls", "normalize"), safetensors=False)
    found = then.compare(BgeEncoder(pickled, allow_pickle_weights=True).fingerprint())
    assert found.state == "compatible"


def test_a_copied_folder_is_equal(bge_small_en: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(bge_small_en, tmp_path / "elsewhere" / bge_small_en.name)
    assert BgeEncoder(bge_small_en).fingerprint().compare(BgeEncoder(copied).fingerprint()).state == "equal"


def test_a_prepared_folder_is_that_of_its_source(bge_small_en: Path, tmp_path: Path) -> None:
    prepare(str(bge_small_en), str(tmp_path / "prepared"))
    then, now = BgeEncoder(bge_small_en).fingerprint(), BgeEncoder(tmp_path / "prepared").fingerprint()
    assert (now.model, now.content) == (then.model, then.content)
    assert then.compare(now).state == "equal"


def test_no_path_of_this_machine_is_in_it(bge_small_en: Path, tmp_path: Path) -> None:
    assert str(bge_small_en.parent) not in BgeEncoder(bge_small_en).fingerprint().to_json()
    snapshot = shutil.copytree(bge_small_en, tmp_path / "models--BAAI--bge-small-en-v1.5" / "snapshots" / "abc")
    assert BgeEncoder(snapshot).fingerprint().model == "BAAI/bge-small-en-v1.5"


def test_long_probes_are_cut_in_silence_whatever_the_setting(bge_small_en: Path) -> None:
    encoder = BgeEncoder(bge_small_en, on_truncation="error")
    assert encoder.fingerprint().max_length == 64
    with pytest.raises(TruncationError):
        encoder.encode_documents(PROBES)


def test_both_frameworks_classes_give_that_of_their_documents(bge_small_en: Path) -> None:
    there = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), embed_instruction="passage: ")
    here = HuggingFaceBgeEmbedding(str(bge_small_en), text_instruction="passage: ")
    assert there.fingerprint() == here.fingerprint()
    assert here.fingerprint().document_instruction == "passage: "


def test_the_estimated_cosine_is_near_the_true_one() -> None:
    """The claim of the docstring, over 1,600 pairs at the threshold."""
    generator = np.random.default_rng(0)
    ratios: list[float] = []
    for dimension in (384, 1024):
        for _ in range(100):
            first = generator.standard_normal((8, dimension))
            first /= np.linalg.norm(first, axis=1, keepdims=True)
            second = first + generator.standard_normal((8, dimension)) * np.sqrt(0.002 / dimension)
            second /= np.linalg.norm(second, axis=1, keepdims=True)
            true = 1 - (first * second).sum(axis=1)
            cosines = _of(first).compare(_of(second)).cosines
            ratios += list((1 - np.array(cosines)) / true)
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert np.std(ratios) == pytest.approx(np.sqrt(2 / 40), rel=0.15)
    assert np.mean((np.array(ratios) < 0.5) | (np.array(ratios) > 2)) < 0.008


def _of(vectors: np.ndarray[Any, np.dtype[np.float64]]) -> Fingerprint:
    return Fingerprint.of_vectors(vectors, model="any")


def test_the_projection_never_changes_within_a_format() -> None:
    vectors = np.arange(8 * 100, dtype=float).reshape(8, 100) + 1
    assert hashlib.sha256(_of(vectors).sketch.encode()).hexdigest()[:16] == "25fd29c88b212569"


def test_few_dimensions_are_stored_whole() -> None:
    vectors = np.eye(8, 16)
    assert _of(vectors).compare(_of(vectors[::-1])).cosines == (0.0,) * 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a fingerprint"),
        ("[]", "is not a fingerprint"),
        ('{"model": "a"}', "is not a fingerprint"),
        ('{"bge_fingerprint": 2}', "has the format 2, but this version reads format 1"),
        ('{"bge_fingerprint": 1}', "lacks 'model'"),
        ("dimension=0", "dimension in this fingerprint is 0, an int"),
        ("dimension=20", "the probe vectors in this fingerprint can't be read"),
        ("sketch=AAA", "the probe vectors in this fingerprint can't be read"),
        ("lengths=[1, 1, 1, 1, 1, 1, 1, Infinity]", r"lengths in this fingerprint is \[1, 1.*inf\], a list"),
        ("lengths=[1]", r"lengths in this fingerprint is \[1\], a list"),
        ("max_length=true", "max_length in this fingerprint is True, a bool"),
    ],
)
def test_damaged_ones_are_refused(text: str, words: str, recorded: Fingerprint) -> None:
    name, _, value = text.partition("=")
    if name in recorded.to_dict():
        given = value if name == "sketch" else json.loads(value)
        text = json.dumps({**recorded.to_dict(), name: given})
    with pytest.raises(FingerprintError, match=words):
        Fingerprint.from_json(text)


def test_fields_of_later_versions_are_left_out(recorded: Fingerprint) -> None:
    assert Fingerprint.from_dict({**recorded.to_dict(), "unheard_of": 1}) == recorded


@pytest.mark.parametrize("shape", [(8,), (7, 4), (8, 0)])
def test_other_vectors_than_of_the_probes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FingerprintError, match="not those of the 8 probe texts"):
        _of(np.ones(shape))


def test_vectors_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(FingerprintError, match="NaN"):
        _of(np.full((8, 4), np.nan))
