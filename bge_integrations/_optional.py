"""Optional dependencies. The error for a missing one gives the command that installs it."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

from bge_integrations.errors import MissingExtraError

WHOLE, SLIM = "bge-integrations", "bge-integrations-slim"
"""The two distributions of this package."""

TORCH = "torch"
"""The extra for torch, transformers and sentence-transformers. The whole distribution always installs these three."""


def require(module: str, extra: str | None) -> ModuleType:
    """Imports a module that this package or one of its extras installs.

    Args:
        module: Module name.
        extra: Name of the extra. `None`: both distributions install the module.

    Raises:
        MissingExtraError: The module, or a package that contains it, is not installed. An error inside the module is
            not converted: for example, a dependency of its own is missing.
    """
    return _import(module, requirement(extra))


def requirement(extra: str | None) -> str:
    """Returns the argument of `pip install` for an extra, or for this package itself, quoted for a shell."""
    name = SLIM if installed_distributions() == [SLIM] else WHOLE
    return name if extra is None or (extra, name) == (TORCH, WHOLE) else f"'{name}[{extra}]'"


def installed_distributions() -> list[str]:
    """Returns which of the two distributions are installed. The list is empty for a plain copy of the sources."""
    return [name for name in (WHOLE, SLIM) if _is_distribution(name)]


def _is_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def require_package(module: str, package: str) -> None:
    """Imports a module of a package that no extra installs.

    Raises:
        MissingExtraError: The module is not installed.
    """
    _import(module, package)


def is_installed(module: str) -> bool:
    """Imports a module if it is installed. Returns whether it is installed."""
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
