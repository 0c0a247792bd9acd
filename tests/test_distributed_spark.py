"""embed_udf in a real local Spark: a Python worker that is killed in the middle, errors, threads, SQL."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from bge_integrations.distributed import embed_udf
from bge_integrations.distributed.worker import WorkerEncoder
from tests.checkpoints import reference_vectors
from tests.test_guides import blocks_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(
        "ignore:PySpark does not yet fully support pandas:FutureWarning", "ignore::ResourceWarning"
    ),
]

ROOT = Path(__file__).parents[1]
PANDAS = ["A panda eats bamboo.", "Pandas live in China."]
ROWS, PARTITIONS, BATCH, FAILURES = 160, 8, 5, 3


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """A local Spark with two workers, on loopback only, that runs a failed task again."""
    if not (shutil.which("java") or "JAVA_HOME" in os.environ):
        pytest.skip("Spark needs Java 17, which is not installed; on Debian: apt-get install openjdk-17-jre-headless")
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers import the package and these tests
        patch.delenv("OMP_NUM_THREADS", raising=False)
        builder = SparkSession.builder.master(f"local[2,{FAILURES}]")
        for name, value in {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": "512m",
            "spark.log.level": "OFF",
            "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH),
            "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "false",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield session
        session.stop()


def texts(count: int) -> list[str]:
    return [f"Passage {number} of the corpus is about a lazy dog." for number in range(count)]


def test_a_worker_that_is_killed_loses_no_row(spark: SparkSession, bge_small_en: Path, tmp_path: Path) -> None:
    from pyspark.sql.pandas.functions import pandas_udf

    inner = embed_udf(bge_small_en).func  # type: ignore[attr-defined]
    graves = str(tmp_path)

    def mortal(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        """Kills its own process with SIGKILL when it has computed its second batch, twice over all workers."""
        for number, vectors in enumerate(inner(batches)):
            for grave in (Path(graves, "first"), Path(graves, "second")) if number == 1 else ():
                try:
                    grave.touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
            yield vectors

    mortal.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    rows = list(enumerate(texts(ROWS)))
    frame = spark.createDataFrame(rows, "id int, text string").repartition(PARTITIONS)
    udf = pandas_udf(mortal, "array<float>")  # type: ignore[call-overload]
    found = frame.withColumn("vector", udf("text")).sort("id").collect()
    assert len(list(tmp_path.iterdir())) == 2
    assert [(row.id, row.text) for row in found] == rows
    vectors = np.array([row.vector for row in found], dtype=np.float32)
    np.testing.assert_allclose(vectors, reference_vectors(bge_small_en, texts(ROWS)), atol=1e-5)


def test_a_worker_has_one_model_and_the_threads_of_its_task(spark: SparkSession, bge_small_en: Path) -> None:
    from pyspark.sql.pandas.functions import pandas_udf

    inner = embed_udf(bge_small_en).func  # type: ignore[attr-defined]
    settings = WorkerEncoder(bge_small_en, "document", {}).settings

    def state(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        """Tells which process computes, how often it has loaded a model, and with how many threads."""
        from bge_integrations.distributed.spark import _kept

        for vectors in inner(batches):
            threads = _kept(settings).backend.request.threads
            yield pd.Series([f"{os.getpid()} {_kept.cache_info().misses} {threads}"] * len(vectors))

    state.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    frame = spark.createDataFrame(list(enumerate(texts(ROWS))), "id int, text string").repartition(PARTITIONS)
    udf = pandas_udf(state, "string")  # type: ignore[call-overload]
    states = {row[0] for row in frame.select(udf("text")).collect()}
    assert {tuple(one.split()[1:]) for one in states} == {("1", "1")}
    assert len(states) < PARTITIONS  # a process has computed several tasks


def test_errors_name_the_row_and_the_node(spark: SparkSession, bge_small_en: Path, tmp_path: Path) -> None:
    from pyspark.errors import PythonException

    frame = spark.createDataFrame([("a", "first"), (None, "second")], "text string, id string").coalesce(1)
    with pytest.raises(PythonException, match=r"Row 1 of partition 0 \(column 2='second'\): Text"):
        frame.select(embed_udf(bge_small_en)("text", "id")).collect()
    with pytest.raises(PythonException, match=r"On the node .*: There is no folder"):
        frame.select(embed_udf(tmp_path / "missing")("text")).collect()


def test_sql_can_use_it(spark: SparkSession, bge_small_en: Path) -> None:
    embed: Any = embed_udf(bge_small_en, role="query", query_instruction="")
    spark.udf.register("embed", embed)
    (row,) = spark.sql("select embed('a lazy dog') as vector").collect()
    np.testing.assert_allclose(row.vector, reference_vectors(bge_small_en, ["a lazy dog"])[0], atol=1e-5)


def test_the_guide_is_right(spark: SparkSession, bge_small_en: Path) -> None:
    (code,) = [block for block in blocks_of("distributed.md", "py") if "SparkSession" in block]
    found: dict[str, Any] = {}
    exec(code.replace("BAAI/bge-small-en-v1.5", str(bge_small_en)), found)
    vectors = [row.vector for row in sorted(found["rows"], key=lambda row: int(row.id))]
    np.testing.assert_allclose(vectors, reference_vectors(bge_small_en, PANDAS), atol=1e-5)
