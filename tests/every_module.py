"""Imports every module of the package, but those of missing frameworks: `python -m tests.every_module`."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterable

import bge_integrations
from bge_integrations.errors import MissingExtraError


def import_every_module() -> None:
    """Raises what goes wrong in one of them."""
    packages: list[tuple[Iterable[str], str]] = [(bge_integrations.__path__, "bge_integrations.")]
    for path, prefix in packages:
        for module in pkgutil.iter_modules(path, prefix):
            with contextlib.suppress(MissingExtraError):
                imported = importlib.import_module(module.name)
                if module.ispkg:
                    packages.append((imported.__path__, f"{module.name}."))


if __name__ == "__main__":
    import_every_module()
