"""What the workers of Ray, Spark and Daft run: batches, errors and what travels. Clusters have tests of their own."""

from __future__ import annotations

import pickle
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyspark import cloudpickle

from bge_integrations.catalogue.instructions import Role
from bge_integrations.distributed import EmbedBatch, embed_series, embed_udf
from bge_integrations.distributed.spark import _kept
from bge_integrations.distributed.worker import _INSTEAD, WorkerEncoder
from bge_integrations.errors import (
    BgeError,
    InputTypeError,
    InputValueError,
    ModelNotFoundError,
    SettingsError,
    TruncationError,
)
from bge_integrations.settings import SECRETS
from tests.checkpoints import reference_vectors
from tests.test_guides import blocks_of
from tests.test_package import modules_after, run_python
from tests.test_secrets import HUB_TOKEN

TEXTS = ["Vector stores keep embeddings.", "The quick brown fox jumps.", "A lazy dog.", "A lazy dog."]
INSTRUCTION = "Represent this sentence for searching relevant passages: "
MOST_BYTES = 10_000

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def _no_telemetry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAFT_ANALYTICS_ENABLED", "0")
        yield


def in_numpy(texts: list[Any], **others: list[Any]) -> dict[str, NDArray[Any]]:
    return {"text": np.array(texts, dtype=object), **{name: np.array(values) for name, values in others.items()}}


def in_arrow(texts: list[Any], **others: list[Any]) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string()), **others})


def with_ray(model: Path | str, texts: list[Any], **settings: Any) -> NDArray[np.float32]:  # noqa: ANN401
    found: NDArray[np.float32] = EmbedBatch(model, **settings)(in_numpy(texts))["vector"]
    return found


def with_spark(model: Path | str, texts: list[Any], **settings: Any) -> NDArray[np.float32]:  # noqa: ANN401
    embed: Any = embed_udf(model, **settings)
    (found,) = embed.func(iter([pd.Series(texts, dtype=object)]))
    return np.stack(found.tolist())


def with_daft(model: Path | str, texts: list[Any], **settings: Any) -> NDArray[np.float32]:  # noqa: ANN401
    import daft

    frame = daft.from_pydict({"text": texts})
    embedded = frame.with_column("vector", embed_series(model, **settings)(frame["text"])).to_pydict()
    return np.array(embedded["vector"], dtype=np.float32)


def pickled(value: object) -> bytes:
    """The bytes that an engine sends: pickled functions and classes have their code in them."""
    return bytes(cloudpickle.dumps(value))  # type: ignore[no-untyped-call]


ENGINES = pytest.mark.parametrize("embedded", [with_ray, with_spark, with_daft])


@ENGINES
@pytest.mark.parametrize("role", ["document", "query", "symmetric"])
def test_vectors_are_those_of_the_role(bge_small_en: Path, embedded: Callable[..., Any], role: Role) -> None:
    prefix = INSTRUCTION if role == "query" else ""
    expected = reference_vectors(bge_small_en, [prefix + text for text in TEXTS])
    found = embedded(bge_small_en, TEXTS, role=role)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@ENGINES
def test_settings_reach_the_encoder(bge_small_en: Path, embedded: Callable[..., Any]) -> None:
    assert embedded(bge_small_en, TEXTS, truncate_dim=5).shape == (4, 5)


def test_an_arrow_batch_gets_lists_of_fixed_size(bge_small_en: Path) -> None:
    table = EmbedBatch(bge_small_en, vector_column="v")(in_arrow(TEXTS, id=[3, 2, 1, 0]))
    assert table.schema.field("v").type == pa.list_(pa.float32(), 32)
    assert table["id"].to_pylist() == [3, 2, 1, 0]
    found = np.array(table["v"].to_pylist())
    np.testing.assert_allclose(found, reference_vectors(bge_small_en, TEXTS), atol=1e-5)


def test_other_columns_of_a_numpy_batch_stay(bge_small_en: Path) -> None:
    batch = {"passage": np.array(TEXTS), "id": np.arange(4)}
    found = EmbedBatch(bge_small_en, text_column="passage")(batch)
    assert list(found) == ["passage", "id", "vector"]
    assert list(batch) == ["passage", "id"]
    assert found["id"] is batch["id"]
    assert found["vector"].shape == (4, 32)


def test_an_empty_batch_has_no_vectors(bge_small_en: Path) -> None:
    embed = EmbedBatch(bge_small_en)
    assert embed(in_numpy([]))["vector"].shape == (0, 32)
    table = embed(in_arrow([]))
    assert table.num_rows == 0
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    spark: Any = embed_udf(bge_small_en)
    assert [len(found) for found in spark.func(iter([pd.Series([], dtype=object)]))] == [0]
    assert list(spark.func(iter([]))) == []


@pytest.mark.parametrize("batch", [in_numpy, in_arrow])
def test_a_missing_text_names_the_row_by_its_other_columns(bge_small_en: Path, batch: Callable[..., Any]) -> None:
    rows = batch(["a", "b", None], id=[7, 8, 9], language=["en", "de", "x" * 99])
    with pytest.raises(InputTypeError, match=r"^Row 2 of a batch \(id='9', language='x{50,57}\.\.\.\): .*NoneType"):
        EmbedBatch(bge_small_en)(rows)


def test_a_broken_text_names_the_row(bge_small_en: Path) -> None:
    with pytest.raises(InputValueError, match=r"^Row 1 of a batch: .*lone surrogate"):
        EmbedBatch(bge_small_en)(in_numpy(["a", "\ud800"]))
    with pytest.raises(TruncationError, match=r"^Row 1 of a batch: ") as caught:
        EmbedBatch(bge_small_en, max_length=8, on_truncation="error")(in_numpy(["a", "fox " * 20]))
    assert caught.value.index == 1


def test_spark_counts_the_rows_of_a_partition_over_its_batches(bge_small_en: Path) -> None:
    embed: Any = embed_udf(bge_small_en)
    batches = [(pd.Series(["a", "b"]), pd.Series([1, 2])), (pd.Series(["c", None], dtype=object), pd.Series([3, 4]))]
    found = embed.func(iter(batches))
    assert len(next(found)) == 2
    with pytest.raises(InputTypeError, match=r"^Row 3 of a partition \(column 2='4'\): "):
        next(found)


def test_daft_names_a_row_by_further_columns(bge_small_en: Path) -> None:
    import daft

    frame = daft.from_pydict({"text": ["a", None], "id": ["first", "second"]})
    embed = embed_series(bge_small_en)
    with pytest.raises(InputTypeError, match=r"^Row 1 of a batch \(column 2='second'\): .*NoneType"):
        frame.with_column("vector", embed(frame["text"], frame["id"])).collect()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"passage": np.array(["a"])}, "has the columns 'passage'; it needs text_column='text'"),
        (in_numpy(["a"], vector=[1]), "must not have vector_column='vector'"),
        (pd.DataFrame({"text": ["a"]}), "is a DataFrame; set batch_format='numpy' or 'pyarrow'"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_a_model_is_loaded(batch: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(SettingsError, match=message):
        EmbedBatch("./no-such-folder")(batch)


MAKERS = pytest.mark.parametrize("make", [EmbedBatch, embed_udf, embed_series])


@MAKERS
@pytest.mark.parametrize(("secret", "remedy"), [("token", "HF_TOKEN on each node"), ("api_key", "'api_key_env': …")])
def test_a_secret_is_refused_and_not_shown(make: Callable[..., Any], secret: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match=f"{secret} can't be given here.*{remedy}") as caught:
        make("BAAI/bge-small-en-v1.5", **{secret: HUB_TOKEN})
    assert HUB_TOKEN not in str(caught.value)


def test_every_secret_has_another_way() -> None:
    assert _INSTEAD.keys() == set(SECRETS)


def test_settings_of_a_server_travel() -> None:
    options = {"api_key_env": "KEY", "headers": {"x-team": "search"}}
    worker = WorkerEncoder("model", "document", {"endpoint": "http://localhost:1", "endpoint_options": options})
    travelled = pickle.loads(pickle.dumps(worker)).settings
    assert travelled == worker.settings
    assert hash(travelled) == hash(worker.settings)  # `_kept` needs it


@MAKERS
def test_settings_are_checked_where_they_are_written(make: Callable[..., Any]) -> None:
    with pytest.raises(SettingsError, match="max_length=0"):
        make("BAAI/bge-small-en-v1.5", max_length=0)
    with pytest.raises(SettingsError, match="role='passage' is unknown"):
        make("BAAI/bge-small-en-v1.5", role="passage")
    with pytest.raises(TypeError, match="max_lenght"):
        make("BAAI/bge-small-en-v1.5", max_lenght=9)


def test_what_travels_is_small_and_works_elsewhere(bge_small_en: Path) -> None:
    batch = EmbedBatch(bge_small_en)
    batch(in_numpy(TEXTS))  # loaded by now
    udf: Any = embed_udf(bge_small_en)
    travelled = pickled(batch), pickled(udf.func), pickled(embed_series(bge_small_en))
    assert max(map(len, travelled)) < MOST_BYTES
    code = """
import pickle, sys
import numpy as np
import pandas as pd
batch, spark = pickle.loads(bytes.fromhex(sys.argv[1])), pickle.loads(bytes.fromhex(sys.argv[2]))
first = batch({"text": np.array(["A lazy dog."])})["vector"]
(second,) = spark(iter([pd.Series(["A lazy dog."])]))
print(first[0].tolist() == second[0].tolist(), first[0].tolist())
"""
    same, found = run_python(code, travelled[0].hex(), travelled[1].hex(), warnings="ignore").strip().split(maxsplit=1)
    assert same == "True"
    np.testing.assert_allclose(eval(found), reference_vectors(bge_small_en, ["A lazy dog."])[0], atol=1e-5)


def test_a_process_has_one_model(bge_small_en: Path) -> None:
    first, second = WorkerEncoder(bge_small_en, "query", {}), WorkerEncoder(bge_small_en, "document", {})
    assert first.load() is first.load()
    assert first.load().backend is second.load().backend
    assert pickle.loads(pickle.dumps(first)).load().backend is first.load().backend


def test_spark_keeps_the_model_between_tasks(bge_small_en: Path) -> None:
    _kept.cache_clear()
    embed: Any = embed_udf(bge_small_en)
    models = []
    for _ in range(2):  # the function of a task is made from a pickle
        task = pickle.loads(pickled(embed.func))
        assert len(list(task(iter([pd.Series(TEXTS)])))) == 1
        models.append(id(_kept(WorkerEncoder(bge_small_en, "document", {}).settings).backend))
    assert models[0] == models[1]
    assert _kept.cache_info().misses == 1
    _kept.cache_clear()


def test_a_local_folder_travels_as_an_absolute_path(bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bge_small_en.parent)
    assert WorkerEncoder(bge_small_en.name, "document", {}).settings.model_name == str(bge_small_en)
    monkeypatch.setenv("HOME", str(bge_small_en.parent))
    assert WorkerEncoder(f"~/{bge_small_en.name}", "document", {}).settings.model_name == str(bge_small_en)
    assert WorkerEncoder("BAAI/bge-m3", "document", {}).settings.model_name == "BAAI/bge-m3"


@pytest.mark.parametrize("embedded", [with_ray, with_spark])
def test_a_folder_that_is_missing_on_a_node_names_the_node(tmp_path: Path, embedded: Callable[..., Any]) -> None:
    missing = tmp_path / "model"
    with pytest.raises(ModelNotFoundError) as caught:
        embedded(missing, TEXTS)
    assert str(caught.value).startswith(f"On the node {platform.node()}: There is no folder {str(missing)!r}")
    assert str(caught.value).endswith("Each node needs the folder of a local model at the same path.")


def test_errors_with_a_place_still_travel(bge_small_en: Path) -> None:
    with pytest.raises(BgeError) as caught:
        EmbedBatch(bge_small_en)(in_numpy(["a", None]))
    travelled = pickle.loads(pickle.dumps(caught.value))
    assert (type(travelled), str(travelled), travelled.index) == (InputTypeError, str(caught.value), 1)


@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")  # a pipe of Daft's process
def test_daft_in_a_process_of_its_own(bge_small_en: Path) -> None:
    found = with_daft(bge_small_en, TEXTS, use_process=True, max_concurrency=1, threads=1, rows=2)
    np.testing.assert_allclose(found, reference_vectors(bge_small_en, TEXTS), atol=1e-5)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    loaded = modules_after("from bge_integrations.distributed import EmbedBatch, embed_series, embed_udf")
    assert not loaded & {"ray", "pyspark", "daft", "pyarrow", "pandas", "torch", "openvino"}


@pytest.mark.parametrize(("name", "module"), [("embed_udf", "pyspark"), ("embed_series", "daft")])
def test_a_missing_engine_names_its_extra(name: str, module: str) -> None:
    code = f"""
from bge_integrations.distributed import {name}
try:
    {name}("BAAI/bge-small-en-v1.5")
except ImportError as error:
    print(error)
"""
    extra, missing = ("spark", "pyspark.sql.functions") if module == "pyspark" else (module, module)
    said = run_python(code, without=[module], warnings="ignore").strip()
    assert said == f"{missing} is not installed. Install it with: pip install 'bge-integrations[{extra}]'"


def test_the_guide_for_daft_is_right(bge_small_en: Path) -> None:
    (code,) = [block for block in blocks_of("distributed.md", "py") if "import daft" in block]
    found: dict[str, Any] = {}
    exec(code.replace("BAAI/bge-small-en-v1.5", str(bge_small_en)), found)
    vectors = np.array(found["rows"]["vector"])
    np.testing.assert_allclose(
        vectors, reference_vectors(bge_small_en, ["A panda eats bamboo.", "Pandas live in China."]), atol=1e-5
    )
