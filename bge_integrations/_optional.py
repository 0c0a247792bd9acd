"""Optional dependencies: an error that is its own remedy."""

from __future__ import annotations

import importlib
from types import ModuleType

from bge_integrations.errors import MissingExtraError


def require(module: str, extra: str | None) -> ModuleType:
    """Imports a module that this package, or an extra of it, brings.

    Args:
        module: Its name.
        extra: The extra; None for what comes with the package itself.

    Returns:
        The module.

    Raises:
        MissingExtraError: It, or a package around it, is not installed. Whatever goes wrong inside it, a missing
            dependency of its own or a damaged installation, is raised as it is.
    """
    return _import(module, requirement(extra))


def requirement(extra: str | None) -> str:
    """Returns what to give pip for an extra of this package, or for the package itself, quoted for a shell."""
    return f"'bge-integrations[{extra}]'" if extra else "bge-integrations"


def require_package(module: str, package: str) -> None:
    """Imports a module of a package that no extra brings; as `require`.

    Args:
        module: Its name.
        package: What pip knows the package as.

    Raises:
        MissingExtraError: It is not installed.
    """
    _import(module, package)


def is_installed(module: str) -> bool:
    """Imports a module if it is installed, and says whether it is."""
    try:
        _import(module, module)
    except MissingExtraError:
        return False
    return True


def _import(module: str, requirement: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(f"{module} is not installed. Install it with: pip install {requirement}") from error
