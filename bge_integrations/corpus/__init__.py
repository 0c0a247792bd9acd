"""Corpora: vectors of many texts on disk, computed once, found again by text. Needs the extra `corpus`."""

from __future__ import annotations

from bge_integrations.corpus.job import CorpusReport, embed_corpus
from bge_integrations.corpus.stored import StoredBatch, StoredVectors
from bge_integrations.corpus.stores import load_into

__all__ = ["CorpusReport", "StoredBatch", "StoredVectors", "embed_corpus", "load_into"]
