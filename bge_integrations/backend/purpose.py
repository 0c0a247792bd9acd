"""What a model is loaded for."""

from __future__ import annotations

from typing import Literal

Purpose = Literal["vectors", "scores", "m3"]
"""One vector a text, a score a pair of texts, or all three outputs of bge-m3."""
