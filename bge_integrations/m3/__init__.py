"""All outputs of bge-m3: dense vectors, lexical weights, token vectors, and scores from them."""

from bge_integrations.calls.m3 import LexicalWeights, M3Output
from bge_integrations.m3.encoder import BgeM3Encoder
from bge_integrations.m3.scores import M3Weights, colbert_score, lexical_score

__all__ = ["BgeM3Encoder", "LexicalWeights", "M3Output", "M3Weights", "colbert_score", "lexical_score"]
