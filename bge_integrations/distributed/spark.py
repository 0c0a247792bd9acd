"""embed_udf: a function for Spark columns that turns texts into vectors. Needs the extra `spark`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations._optional import require
from bge_integrations.catalogue.instructions import Role
from bge_integrations.distributed.worker import WorkerEncoder
from bge_integrations.encoder import BgeEncoder
from bge_integrations.settings import EncoderOptions, EncoderSettings

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd
    from pyspark.sql import Column

    Batch: TypeAlias = pd.Series | tuple[pd.Series, ...]


def embed_udf(
    model_name: str | os.PathLike[str], *, role: Role = "document", **options: Unpack[EncoderOptions]
) -> Callable[..., Column]:
    """Returns a pandas UDF, for `frame.withColumn("vector", embed("text"))`.

    A Python worker of Spark loads the model once, and keeps it for its later tasks. Its number of threads is
    `spark.task.cpus`, unless `threads` or `OMP_NUM_THREADS` is set.

    Args:
        model_name: Hub id, or a folder that exists at the same path on each node.
        role: Role of the texts: `"document"`, `"query"`, or `"symmetric"` for no instruction.
        **options: Further fields of `bge_integrations.settings.EncoderSettings`, without `token` and `api_key`.

    Returns:
        Function of a column of texts. Further columns name a row in errors: `embed("text", "id")`. The vectors have the
        type `array<float>`.

    Raises:
        MissingExtraError: pyspark is not installed.
        TypeError: An option is unknown.
        SettingsError: A setting is invalid, or it is a secret.
    """
    functions = require("pyspark.sql.functions", extra="spark")
    import pandas as pd
    from pyspark.sql.types import ArrayType, FloatType

    worker = WorkerEncoder(model_name, role, options)

    def embed(batches: Iterator[Batch]) -> Iterator[pd.Series]:
        return _embedded(worker, batches)

    # Spark reads the kind of a function from its annotations, and can't evaluate the ones above.
    embed.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": Iterator[pd.Series]}
    udf: Callable[..., Column] = functions.pandas_udf(embed, ArrayType(FloatType()))
    return udf


def _embedded(worker: WorkerEncoder, batches: Iterator[Batch]) -> Iterator[pd.Series]:
    import pandas as pd
    from pyspark import TaskContext

    context, first = TaskContext.get(), 0
    worker.load()
    _kept(worker.settings)
    for batch in batches:
        texts, *others = batch if isinstance(batch, tuple) else (batch,)
        vectors = worker.vectors(
            texts.tolist(),
            where=f"partition {context.partitionId()}" if context else "a partition",
            first=first,
            beside={f"column {number}": other.array for number, other in enumerate(others, 2)},
        )
        yield pd.Series(list(vectors), dtype=object)
        first += len(texts)


@lru_cache(maxsize=2)
def _kept(settings: EncoderSettings) -> BgeEncoder:
    """Returns an encoder that keeps its model loaded between the tasks of a worker, also for the worker's own encoder.

    Two, for a job with two models. Spark ends a worker that has nothing to do for a minute.
    """
    return BgeEncoder.from_settings(settings)
