"""Optional dependencies: an error that is its own remedy."""

from __future__ import annotations

import importlib

from bge_integrations.errors import MissingExtraError


def require(module: str, extra: str) -> None:
    """Imports a module that an extra brings.

    Args:
        module: Its name.
        extra: The extra of this package.

    Raises:
        MissingExtraError: It is not installed. Whatever goes wrong inside it is raised as it is.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed. Install it with: pip install 'bge-integrations[{extra}]'"
        ) from error
