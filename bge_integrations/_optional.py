"""Optional dependencies: an error that is its own remedy."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

from bge_integrations.errors import MissingExtraError

WHOLE, SLIM = "bge-integrations", "bge-integrations-slim"
"""The two distributions of this package."""

TORCH = "torch"
"""The extra that brings torch, transformers and sentence-transformers. They come with the whole distribution itself."""


def require(module: str, extra: str | None) -> ModuleType:
    """Imports a module that this package, or an extra of it, brings.

    Args:
        module: Its name.
        extra: The extra; None for what comes with both distributions.

    Returns:
        The module.

    Raises:
        MissingExtraError: It, or a package around it, is not installed. Whatever goes wrong inside it, a missing
            dependency of its own or a damaged installation, is raised as it is.
    """
    return _import(module, requirement(extra))


def requirement(extra: str | None) -> str:
    """Returns what to give pip for an extra of this package, or for the package itself, quoted for a shell."""
    name = SLIM if installed_distributions() == [SLIM] else WHOLE
    return name if extra is None or (extra, name) == (TORCH, WHOLE) else f"'{name}[{extra}]'"


def installed_distributions() -> list[str]:
    """Returns which of the two distributions are installed; none where this package was copied without metadata."""
    return [name for name in (WHOLE, SLIM) if _is_distribution(name)]


def _is_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


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
