"""What the suites of both frameworks' classes share: a small corpus, a tolerance, and ways to treat an embedder."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import traceback
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from pydantic import ValidationError

from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.backend.loading.model import LoadedModel

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："

CORPUS = [
    "The Eiffel Tower is a wrought-iron lattice tower in Paris, France.",
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
    "A hash table maps keys to values with constant average time for look-up.",
    "The Great Barrier Reef lies off the coast of Queensland, Australia.",
    "Sourdough bread rises with wild yeast and lactic acid bacteria.",
]
QUESTION, ANSWER = "how do plants make their food?", CORPUS[1]

each_way_to_copy = pytest.mark.parametrize(
    "way", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)


def assert_close(actual: ArrayLike, expected: ArrayLike) -> None:
    """Every element within 1e-5, the tolerance for vectors that were stored before."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5, rtol=0)


def everything_of(error: BaseException) -> str:
    """What logs, traces and recorders of errors take from an error and from those that came before it."""
    parts = traceback.format_exception(error)
    chain: BaseException | None = error
    while chain is not None:
        parts += [str(chain), repr(chain), repr(chain.args)]
        if isinstance(chain, ValidationError):
            parts += [json.dumps(chain.errors(), default=str), chain.json()]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(parts)


async def run_off_the_loop(
    backend: LoadedModel, monkeypatch: pytest.MonkeyPatch, *embedding: Coroutine[Any, Any, Any]
) -> list[Any]:
    """Embeds with engines that are held up until the loop itself lets them go, and returns what that gave.

    Raises:
        AssertionError: An engine was asked from the loop's own thread.
    """
    release, threads = threading.Event(), set()

    submit = backend.engine.submit

    def held(batch: TokenBatch) -> PendingRows:
        threads.add(threading.current_thread())
        assert release.wait(30)
        return submit(batch)

    monkeypatch.setattr(backend.engine, "submit", held)
    tasks = [asyncio.create_task(each) for each in embedding]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    release.set()
    vectors = await asyncio.gather(*tasks)
    assert threads
    assert threading.main_thread() not in threads
    return vectors
