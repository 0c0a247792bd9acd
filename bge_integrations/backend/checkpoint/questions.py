"""What a decoder that scores pairs is asked: only BGE's own were trained with a question that is known."""

from __future__ import annotations

from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.catalogue import MODELS, ModelSpec
from bge_integrations.errors import UnsupportedModelError


def trained_question(spec: ModelSpec | None) -> str | None:
    """Returns the question that a model was trained with; None where nobody knows.

    Args:
        spec: The catalogue's row, or None for a model that is no BGE.
    """
    return spec.reranker_prompt if spec else None


def require_question(name: str, question: str | None) -> str:
    """Returns the question; refuses a decoder that there is none for.

    Args:
        name: What the user called the model.
        question: The user's own, or the one that the model was trained with.

    Raises:
        UnsupportedModelError: There is none.
    """
    if question is None:
        known = ", ".join(spec.name for spec in MODELS if spec.reranker_prompt)
        raise UnsupportedModelError(
            f"{name} is a causal language model, and neither its name nor its files say that it is one of the BGE "
            f"decoder rerankers ({known}). So its question is unknown. If it was trained to answer 'Yes' or 'No' to "
            "'A: {query}', 'B: {passage}' and a question, each on its own line, give that question as prompt=…; "
            "otherwise its scores would mean nothing."
        )
    return question


def require_plain_decoder(checkpoint: Checkpoint) -> None:
    """Refuses a decoder whose own files say that modules of sentence-transformers make something of its logits.

    Raises:
        UnsupportedModelError: They do.
    """
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in checkpoint.modules or ()]
    if len(kinds) > 1:
        raise UnsupportedModelError(
            f"{checkpoint.name} is a causal language model, of whose output {' + '.join(kinds[1:])} makes the result, "
            "as its modules.json says. BgeReranker scores decoders only by the logit of 'Yes'. Score it with "
            "sentence_transformers.CrossEncoder, if it is a reranker."
        )
