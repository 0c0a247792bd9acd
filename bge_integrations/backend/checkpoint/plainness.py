"""The exception for checkpoints that this package can't load by itself."""

from __future__ import annotations


class NotPlainError(Exception):
    """Raised while files are described if only sentence-transformers can load them. The message says why."""
