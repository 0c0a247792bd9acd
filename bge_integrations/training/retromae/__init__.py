"""RetroMAE: pre-training of an encoder on plain texts, before contrastive training.

Xiao et al. 2022, https://arxiv.org/abs/2205.12035. The encoder reads a text with some masked words, and one vector of
it must let a weak decoder tell every word of the text.
"""

from __future__ import annotations
