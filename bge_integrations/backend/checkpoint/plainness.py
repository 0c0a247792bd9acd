"""How a checkpoint says that it is not one of those that this package loads by itself."""

from __future__ import annotations


class NotPlainError(Exception):
    """Raised while files are described if only sentence-transformers can load them. Its text says what is special."""
