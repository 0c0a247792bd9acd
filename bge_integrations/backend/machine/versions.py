"""The versions of installed packages, also where their metadata are missing.

Slimmed layers of cloud functions and vendored copies hold packages without the `*.dist-info` beside them.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from bge_integrations._version import __version__

_OWN = "bge-integrations"
_MODULES = {"llama-index-core": "llama_index.core"}


def version_of(distribution: str) -> str | None:
    """Returns a package's version: as its metadata say, else as the module says that is imported already.

    Args:
        distribution: The name on the package index.

    Returns:
        The version; None where neither says it.
    """
    if distribution == _OWN:
        return __version__
    try:
        found: object = version(distribution)
    except (PackageNotFoundError, KeyError):  # the latter for metadata without a version, from Python 3.14 on
        found = None
    if found is None:  # metadata without a version, before
        found = getattr(sys.modules.get(module_of(distribution)), "__version__", None)
    return found if isinstance(found, str) else None


def module_of(distribution: str) -> str:
    """Returns the module that a package of this name is imported by."""
    return _MODULES.get(distribution, distribution.replace("-", "_"))
