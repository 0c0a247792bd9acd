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
        MissingExtraError: It, or a package around it, is not installed. Whatever goes wrong inside it, a missing
            dependency of its own or a damaged installation, is raised as it is.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(
            f"{module} is not installed. Install it with: pip install 'bge-integrations[{extra}]'"
        ) from error
