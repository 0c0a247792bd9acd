"""The versions of installed packages, also of packages without metadata.

Reduced layers of cloud functions and vendored copies hold packages without their `*.dist-info` folder.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from bge_integrations._version import __version__

_OWN = "bge-integrations"
_MODULES = {"llama-index-core": "llama_index.core"}


def version_of(distribution: str) -> str | None:
    """Returns a package's version, from its metadata or else from its imported module; `None` if neither has it."""
    if distribution == _OWN:
        return __version__
    try:
        found: object = version(distribution)
    except (PackageNotFoundError, KeyError):  # KeyError: metadata without a version, from Python 3.14 on
        found = None
    if found is None:  # before Python 3.14, `version` returns `None` for metadata without a version
        found = getattr(sys.modules.get(module_of(distribution)), "__version__", None)
    return found if isinstance(found, str) else None


def module_of(distribution: str) -> str:
    """Returns the name of a package's module."""
    return _MODULES.get(distribution, distribution.replace("-", "_"))
