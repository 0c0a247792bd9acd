"""Fails to import, as a framework does whose own dependency is missing."""

import no_such_module_anywhere  # type: ignore[import-not-found]  # noqa: F401
