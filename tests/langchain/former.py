"""The adapters that ours replace, and what both suites compare with."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.adapters import EN, ZH, assert_close

__all__ = ["EN", "ZH", "are_close", "assert_close", "community_bge", "huggingface"]


def community_bge(**settings: Any) -> Any:  # noqa: ANN401 - it has no types
    """langchain-community's deprecated `HuggingFaceBgeEmbeddings`."""
    from langchain_core._api import LangChainDeprecationWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`langchain-community` is being sunset", DeprecationWarning)
        warnings.simplefilter("ignore", LangChainDeprecationWarning)
        from langchain_community.embeddings import HuggingFaceBgeEmbeddings

        return HuggingFaceBgeEmbeddings(**settings)


def huggingface(**settings: Any) -> Any:  # noqa: ANN401 - it has no types
    """langchain-huggingface's `HuggingFaceEmbeddings`."""
    from langchain_huggingface import HuggingFaceEmbeddings

    return HuggingFaceEmbeddings(**settings)


def are_close(actual: ArrayLike, expected: ArrayLike) -> bool:
    """Whether two arrays of vectors are the same but for noise; far apart otherwise in these tests."""
    return np.allclose(np.asarray(actual), np.asarray(expected), atol=1e-3, rtol=0)
