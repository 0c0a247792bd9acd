"""Compares the vectors of a server with those that the model should give, and says how they differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.loading.remote import PROBE
from bge_integrations.backend.model.pooling import cosines
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import BgeError, EndpointMismatchError, SettingsError
from bge_integrations.fingerprint import LEAST_COSINE, PROBES, Comparison, Fingerprint
from bge_integrations.settings import Pooling
from bge_integrations.texts import kind_of

__all__ = ["check_endpoint"]

_POOLINGS: tuple[Pooling | None, ...] = (None, "cls", "mean", "last")
_WORDS = {"cls": "the first token", "mean": "the mean of all tokens", "last": "the last token"}
_REMEDY = (
    "The server may add an instruction of its own, pool otherwise, or run another model; give check_endpoint an "
    "encoder with the model in this process to learn more."
)


class HasEncoder(Protocol):
    """An embedding class of a framework."""

    @property
    def encoder(self) -> BgeEncoder:
        """The encoder for documents."""
        ...


def check_endpoint(
    embedder: BgeEncoder | HasEncoder, expected: Fingerprint | BgeEncoder | HasEncoder, *, least: float = LEAST_COSINE
) -> Comparison:
    """Checks that a server computes the vectors of a known model. It sends eight probe texts.

    Args:
        embedder: The encoder or embedding class with `endpoint`.
        expected: A fingerprint of the model, such as that of an index; or an encoder or embedding class with the same
            model in this process. The latter says more about the reason of a difference: it tries other poolings and
            instructions.
        least: Least cosine of the vectors of every probe text.

    Returns:
        The comparison. Its state is `"equal"` or `"compatible"`.

    Raises:
        EndpointMismatchError: The vectors differ. The message says how, and the likely reason.
        SettingsError: `embedder` has no `endpoint`, or `expected` is of another type.
        BgeError: As `BgeEncoder.encode_documents`.
    """
    remote = _encoder_of(embedder)
    if remote.settings.endpoint is None:
        raise SettingsError(f"{remote!r} has no endpoint, so there is nothing to check.")
    local = None if isinstance(expected, Fingerprint) else _encoder_of(expected)
    wanted = expected if isinstance(expected, Fingerprint) else _encoder_of(expected).fingerprint()
    comparison = wanted.compare(remote.fingerprint(), least_cosine=least)
    if comparison.state != "different":
        return comparison
    reasons = [*_counted(remote), *(_tried(remote, local, least) if local is not None else ())]
    raise EndpointMismatchError(
        f"{remote.settings.endpoint} computes other vectors than {wanted.model}. What was expected is called then, and "
        f"what it gives now: {'; '.join(comparison.differences)}. {' '.join(reasons) or _REMEDY}"
    )


def _encoder_of(embedder: object) -> BgeEncoder:
    found = getattr(embedder, "encoder", embedder)
    if not isinstance(found, BgeEncoder):
        raise SettingsError(f"{kind_of(embedder)} holds no encoder of dense vectors; give an encoder or embeddings.")
    return found


def _counted(remote: BgeEncoder) -> Iterator[str]:
    """Yields a sentence if the server counts other tokens than the model's tokenizer."""
    model = remote.backend
    served = model.served.tokens_of_probe if model.served else None
    if served is None or model.tokenizer.is_estimate:
        return
    counted = int(model.tokenizer.count([PROBE])[0])
    if served > counted:
        yield (
            f"The server counts {served} tokens for a text of {counted}: it adds text of its own, such as an "
            "instruction. Switch its prompt off, since the instruction is added here."
        )
    elif served < counted:
        yield f"The server counts {served} tokens for a text of {counted}: it has another tokenizer or a lower limit."


def _tried(remote: BgeEncoder, local: BgeEncoder, least: float) -> Iterator[str]:
    """Yields sentences on the way of use in which the local model gives the server's vectors."""
    quiet = remote.settings.replace(on_truncation="ignore", show_progress=False)
    texts = PROBES[:-1]  # the long text depends on the limit too
    with BgeEncoder.from_settings(quiet) as encoder:
        served = encoder.encode_documents(texts)
    own = local.instruction("document")
    added = {own.prefix: "the instruction of documents", local.instruction("query").prefix: "the one of queries"}
    for pooling, prefix in itertools.product(_POOLINGS, ("", *filter(None, added))):
        vectors = _vectors(local, pooling, [own.apply(prefix + text) for text in texts])
        if vectors is None or vectors.shape != served.shape or cosines(vectors, served).min() < least:
            continue
        if pooling is not None:
            yield f"Its vectors are those of {_WORDS[pooling]} (pooling {pooling!r}): start it with the right pooling."
        if prefix:
            yield (
                f"It adds {prefix!r} to every text, which is {added[prefix]}. Switch its prompt off, since the "
                "instruction is added here."
            )
        return
    yield "No pooling and no instruction of this model explains its vectors: it runs another model."


def _vectors(local: BgeEncoder, pooling: Pooling | None, texts: list[str]) -> NDArray[np.float32] | None:
    """Returns vectors of texts as they are; `None` if the local model can't pool so."""
    settings = local.settings.replace(
        document_instruction="", task=None, examples=None, on_truncation="ignore", show_progress=False
    )
    try:
        with BgeEncoder.from_settings(settings.replace(pooling=pooling or settings.pooling)) as encoder:
            return encoder.encode_documents(texts)
    except BgeError:
        return None
