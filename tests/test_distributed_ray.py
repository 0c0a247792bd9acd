"""EmbedBatch in a real local Ray: two actors, killed in the middle; errors; threads."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from benchmarks.distributed import vectors_of, with_actors
from bge_integrations.distributed import EmbedBatch
from tests.checkpoints import reference_vectors
from tests.test_guides import blocks_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

PANDAS = ["A panda eats bamboo.", "Pandas live in China."]
ROWS, BATCH, DEATHS = 240, 10, 2
ROOT = Path(__file__).parents[1]


class MortalBatch(EmbedBatch):
    """Kills its own process with SIGKILL when it has computed its third batch, a number of times over all actors."""

    def __init__(self, model: str, *, graves: str) -> None:
        super().__init__(model)
        self._graves, self._computed = Path(graves), 0

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = super().__call__(batch)
        self._computed += 1
        if self._computed == 3 and self._dies():
            os.kill(os.getpid(), signal.SIGKILL)
        threads = self._worker.load().backend.request.threads
        return {
            **found,
            "process": np.full(len(batch["id"]), os.getpid()),
            "threads": np.full(len(batch["id"]), threads),
        }

    def _dies(self) -> bool:
        for number in range(DEATHS):
            try:
                (self._graves / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local Ray that reports nothing, listens on loopback only and keeps its token in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the user's home
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers import the package and these tests
        patch.delenv("OMP_NUM_THREADS", raising=False)
        import ray.data

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100_000_000,
            _node_ip_address="127.0.0.1",
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield ray
        ray.shutdown()


def texts(count: int) -> list[str]:
    return [f"Passage {number} of the corpus is about a lazy dog." for number in range(count)]


def test_actors_that_are_killed_lose_no_row(ray: Any, bge_small_en: Path, tmp_path: Path) -> None:  # noqa: ANN401
    rows = [{"id": number, "text": text} for number, text in enumerate(texts(ROWS))]
    embedded = ray.data.from_items(rows, override_num_blocks=12).map_batches(
        MortalBatch,
        fn_constructor_args=[str(bge_small_en)],
        fn_constructor_kwargs={"graves": str(tmp_path)},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=BATCH,
        batch_format="numpy",
    )
    found = sorted(embedded.take_all(), key=lambda row: row["id"])
    assert len(list(tmp_path.iterdir())) == DEATHS
    assert [(row["id"], row["text"]) for row in found] == [(row["id"], row["text"]) for row in rows]
    vectors = np.stack([row["vector"] for row in found])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference_vectors(bge_small_en, texts(ROWS)), atol=1e-5)
    assert {row["threads"] for row in found} == {1}
    assert max(Counter(row["process"] for row in found).values()) < ROWS  # more than one actor worked


def test_the_error_of_an_actor_names_the_row(ray: Any, bge_small_en: Path) -> None:  # noqa: ANN401
    rows = [{"text": "a", "id": "first"}, {"text": None, "id": "second"}]
    embedded = ray.data.from_items(rows).map_batches(
        EmbedBatch,
        fn_constructor_args=[str(bge_small_en)],
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_format="pyarrow",
    )
    with pytest.raises(ray.exceptions.RayTaskError, match=r"\(id='second'\): Text"):
        embedded.take_all()


def test_the_guide_is_right(ray: Any, bge_small_en: Path) -> None:  # noqa: ANN401
    (code,) = [block for block in blocks_of("distributed.md", "py") if "import ray" in block]
    found: dict[str, Any] = {}
    exec(code.replace("BAAI/bge-small-en-v1.5", str(bge_small_en)), found)
    vectors = [row["vector"] for row in sorted(found["rows"], key=lambda row: row["id"])]
    np.testing.assert_allclose(vectors, reference_vectors(bge_small_en, PANDAS), atol=1e-5)


def test_the_benchmark_compares_the_same_rows(ray: Any, bge_small_en: Path) -> None:  # noqa: ANN401
    table = pa.table({"id": range(20), "text": texts(20)})
    dataset = ray.data.from_arrow([table.slice(10), table.slice(0, 10)])
    embedded = with_actors(dataset, str(bge_small_en), actors=1, cores=1, batch=7)
    expected = reference_vectors(bge_small_en, texts(20))
    np.testing.assert_allclose(vectors_of(embedded, 32), expected, atol=1e-5)
