"""EmbedBatch: adds vectors to the batches of a Ray dataset. Needs the extra `ray`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from bge_integrations.catalogue.instructions import Role
from bge_integrations.distributed.worker import WorkerEncoder, as_lists
from bge_integrations.errors import SettingsError
from bge_integrations.settings import EncoderOptions
from bge_integrations.texts import kind_of

if TYPE_CHECKING:
    from typing import TypeVar

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Batch = TypeVar("Batch", dict[str, NDArray[Any]], pa.Table)


class EmbedBatch:
    """Callable class for `ray.data.Dataset.map_batches`: each actor holds one model and adds a column of vectors.

    The numbers of actors, of CPUs and of GPUs (also a fraction of one) are arguments of `map_batches`.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        text_column: str = "text",
        vector_column: str = "vector",
        role: Role = "document",
        **options: Unpack[EncoderOptions],
    ) -> None:
        """Checks the settings. The model is loaded with the first batch.

        Args:
            model_name: Hub id, or the absolute path of a folder that exists on each node.
            text_column: Column of the texts.
            vector_column: New column. float32: an array of shape [n, dimension]; in Arrow, lists of fixed size.
            role: Role of the texts: `"document"`, `"query"`, or `"symmetric"` for no instruction.
            **options: Further fields of `bge_integrations.settings.EncoderSettings`, without `token` and `api_key`.

        Raises:
            TypeError: An option is unknown.
            SettingsError: A setting is invalid, or it is a secret.
        """
        self._worker = WorkerEncoder(model_name, role, options)
        self._text_column, self._vector_column = text_column, vector_column

    def __call__(self, batch: Batch) -> Batch:
        """Returns a batch with its vectors. The batch has the format `"numpy"` or `"pyarrow"`.

        Raises:
            SettingsError: A column is missing or there already, or the batch has another format.
            BgeError: The model can't be loaded, or a text can't be encoded. The message names the node or the row.
        """
        if isinstance(batch, dict):
            return {**batch, self._vector_column: self._vectors(batch, methodcaller("tolist"))}
        if not hasattr(batch, "append_column"):
            raise SettingsError(f"A batch is {kind_of(batch)}; set batch_format='numpy' or 'pyarrow' in map_batches.")
        columns = dict(zip(batch.column_names, batch.columns, strict=True))
        return batch.append_column(self._vector_column, as_lists(self._vectors(columns, methodcaller("to_pylist"))))

    def _vectors(self, columns: Mapping[str, Any], read: Callable[[Any], list[Any]]) -> NDArray[np.float32]:
        others = {name: column for name, column in columns.items() if name != self._text_column}
        if len(others) == len(columns) or self._vector_column in columns:
            raise SettingsError(
                f"A batch has the columns {', '.join(map(repr, columns))}; it needs text_column={self._text_column!r}, "
                f"and must not have vector_column={self._vector_column!r}."
            )
        return self._worker.vectors(read(columns[self._text_column]), beside=others)
