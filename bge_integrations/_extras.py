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
    _import(module, f"'bge-integrations[{extra}]'")


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


def _import(module: str, requirement: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(f"{module} is not installed. Install it with: pip install {requirement}") from error
