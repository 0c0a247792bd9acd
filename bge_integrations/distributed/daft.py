"""embed_series: a Daft class whose instances turn a column of texts into vectors. Needs the extra `daft`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations._optional import require
from bge_integrations.catalogue.instructions import Role
from bge_integrations.distributed.worker import WorkerEncoder, as_lists
from bge_integrations.settings import EncoderOptions

if TYPE_CHECKING:
    import pyarrow as pa
    from daft import Expression, Series


def embed_series(
    model_name: str | os.PathLike[str],
    *,
    role: Role = "document",
    gpus: int = 0,
    max_concurrency: int | None = None,
    use_process: bool = False,
    rows: int | None = None,
    **options: Unpack[EncoderOptions],
) -> Callable[..., Expression]:
    """Returns an instance of a Daft class, for `frame.with_column("vector", embed(frame["text"]))`.

    Args:
        model_name: Hub id, or a folder that exists at the same path on each node.
        role: Role of the texts: `"document"`, `"query"`, or `"symmetric"` for no instruction.
        gpus: GPUs of an instance.
        max_concurrency: Greatest number of instances. Instances in one process share one model.
        use_process: Whether each instance has a process and a model of its own. Then set `threads` too: otherwise each
            process uses all cores.
        rows: Greatest number of rows in a call. `None`: Daft's own number.
        **options: Further fields of `bge_integrations.settings.EncoderSettings`, without `token` and `api_key`.

    Returns:
        Function of a column of texts. Further columns name a row in errors: `embed(frame["text"], frame["id"])`. The
        vectors have the type `List[Float32]`.

    Raises:
        MissingExtraError: daft is not installed.
        TypeError: An option is unknown.
        SettingsError: A setting is invalid, or it is a secret.
    """
    require("daft", extra="daft")
    import daft

    class EmbedSeries:
        def __init__(self, worker: WorkerEncoder) -> None:
            self._worker = worker

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=rows)
        def __call__(self, texts: Series, *others: Series) -> pa.FixedSizeListArray:
            beside = {f"column {number}": other.to_pylist() for number, other in enumerate(others, 2)}
            return as_lists(self._worker.vectors(texts.to_pylist(), beside=beside))

    made = daft.cls(EmbedSeries, gpus=gpus, use_process=use_process, max_concurrency=max_concurrency)
    embed: Callable[..., Expression] = made(WorkerEncoder(model_name, role, options))
    return embed
