"""What a worker of an engine holds: an encoder made from settings that travelled. Errors name the node and the row."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from bge_integrations.catalogue.instructions import Role, read_role
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import BgeError, SettingsError
from bge_integrations.settings import SECRETS, EncoderOptions, EncoderSettings
from bge_integrations.texts import shortened

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Error = TypeVar("Error", bound=BgeError)

_COLUMNS_SHOWN = 3
_INSTEAD = {
    "token": "set the environment variable HF_TOKEN on each node",
    "api_key": "set an environment variable on each node, and name it in endpoint_options={'api_key_env': …}",
}


class WorkerEncoder:
    """Settings that travel to a worker, and the encoder that the worker makes of them at its first text.

    A pickle has the settings and the role, never the weights.

    Attributes:
        settings: The settings of the encoder.
        role: Role of the texts.
    """

    def __init__(self, model_name: str | os.PathLike[str], role: Role, options: EncoderOptions) -> None:
        """Checks the settings. No model is loaded.

        Args:
            model_name: Hub id, or a folder that exists on each node. The path of a folder on this machine is made
                absolute, since workers have another working directory.
            role: `"query"`, `"document"`, or `"symmetric"` for no instruction.
            options: Further fields of `EncoderSettings`.

        Raises:
            TypeError: An option is unknown.
            SettingsError: A setting is invalid, or it is a secret.
        """
        for name in SECRETS:
            if options.get(name) is not None:
                raise SettingsError(
                    f"{name} can't be given here, since settings travel to other machines; {_INSTEAD[name]}."
                )
        settings = EncoderSettings(model_name=os.fspath(model_name), **options)
        folder = os.path.expanduser(settings.model_name)
        self.settings = settings.replace(model_name=os.path.abspath(folder)) if os.path.isdir(folder) else settings
        self.role = read_role(role)
        self._encoder: BgeEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the encoder out of pickles."""
        return {**vars(self), "_encoder": None}

    def load(self) -> BgeEncoder:
        """Returns the encoder; loads its model at the first call.

        Raises:
            BgeError: The model can't be loaded. The message names the node.
        """
        if self._encoder is None:
            try:
                self._encoder = BgeEncoder.from_settings(self.settings)
            except BgeError as error:
                everywhere = os.path.isabs(self.settings.model_name)
                remedy = " Each node needs the folder of a local model at the same path." if everywhere else ""
                raise _placed(error, f"On the node {platform.node()}", remedy) from error
        return self._encoder

    def vectors(
        self, texts: Sequence[Any], *, where: str = "a batch", first: int = 0, beside: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Encodes the texts of some rows.

        Args:
            texts: The text of each row.
            where: Name of what the rows belong to, for messages.
            first: Number of the first row, for messages.
            beside: Other columns, by name. The first ones name a row in messages.

        Returns:
            C-contiguous float32 array of shape [n, dimension].

        Raises:
            BgeError: The model can't be loaded, or a text can't be encoded. The message names the node or the row.
        """
        encoder = self.load()
        encode = {"query": encoder.encode_queries, "document": encoder.encode_documents, "symmetric": encoder.encode}
        try:
            return encode[self.role](texts)
        except BgeError as error:
            index: int | None = getattr(error, "index", None)
            if index is None:
                raise
            shown = islice((beside or {}).items(), _COLUMNS_SHOWN)
            values = ", ".join(f"{name}={shortened(str(column[index]))}" for name, column in shown)
            row = f"Row {first + index} of {where}{f' ({values})' if values else ''}"
            raise _placed(error, row) from error


def as_lists(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Returns vectors as an Arrow array of lists, one a row, without a copy.

    Args:
        vectors: C-contiguous float32 array of shape [n, dimension].
    """
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _placed(error: Error, place: str, remedy: str = "") -> Error:
    """Returns a copy of an error whose message names a place."""
    placed = copy.copy(error)
    placed.args = (f"{place}: {error}{remedy}",)
    return placed
