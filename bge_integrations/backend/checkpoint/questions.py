"""The question in the prompt of a decoder that scores pairs. It is known only for BGE's own decoders."""

from __future__ import annotations

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.catalogue import MODELS, ModelSpec
from bge_integrations.errors import UnsupportedModelError


def trained_question(spec: ModelSpec | None) -> str | None:
    """Returns the question that a model was trained with; `None` if it is unknown."""
    return spec.reranker_prompt if spec else None


def require_question(name: str, question: str | None) -> str:
    """Returns the question; refuses a decoder without one.

    Raises:
        UnsupportedModelError: `question` is `None`.
    """
    if question is None:
        known = ", ".join(spec.name for spec in MODELS if spec.reranker_prompt)
        raise UnsupportedModelError(
            f"{name} is a causal language model, and neither its name nor its files say that it is one of the BGE "
            f"decoder rerankers ({known}). So its question is unknown. If it was trained to answer 'Yes' or 'No' to "
            "'A: {query}', 'B: {passage}' and a question, each on its own line, give that question as prompt=…. "
            "Otherwise its scores would mean nothing."
        )
    return question


def require_plain_decoder(checkpoint: Checkpoint) -> None:
    """Refuses a decoder whose modules.json lists further modules after the language model.

    Raises:
        UnsupportedModelError: It lists further modules.
    """
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in checkpoint.modules or ()]
    if len(kinds) > 1:
        raise UnsupportedModelError(
            f"{checkpoint.name} is a causal language model, and its modules.json computes the result from its output "
            f"by {' + '.join(kinds[1:])}. BgeReranker scores decoders only by the logit of 'Yes'. If it is a reranker, "
            "score it with sentence_transformers.CrossEncoder."
        )
