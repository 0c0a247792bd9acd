"""Makes the encoders for documents and for queries, with the instructions that the user's prompts give."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bge_integrations.adapters.keywords import EncodingKwargs, LoadingKwargs
from bge_integrations.calls.progress import warn_user
from bge_integrations.catalogue.instructions import DOCUMENT_PROMPT_NAMES, QUERY_PROMPT_NAMES
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.redaction import shown
from bge_integrations.settings import EncoderSettings


def build_encoders(
    settings: EncoderSettings, loading: LoadingKwargs, document: EncodingKwargs, query: EncodingKwargs
) -> tuple[BgeEncoder, BgeEncoder]:
    """Returns the encoders for documents and for queries. They share one model. With equal settings they are the same.

    Raises:
        SettingsError: Neither the checkpoint nor the user's `prompts` has a prompt of this name.
        BgeError: Loading fails.
    """
    for encoding in (document,) if query == document else (document, query):
        _warn_of_two_prompts(encoding)
    documents = _build_encoder(settings, loading, document)
    queries = _build_encoder(settings, loading, query)
    return documents, documents if queries.settings == documents.settings else queries


def _warn_of_two_prompts(encoding: EncodingKwargs) -> None:
    if encoding.prompt is not None and encoding.prompt_name is not None:
        warn_user(
            f"prompt={shown(encoding.prompt)} and prompt_name={encoding.prompt_name!r} are both given; prompt_name is "
            "ignored in favour of prompt. Give one of them.",
            UserWarning,
        )


def _build_encoder(settings: EncoderSettings, loading: LoadingKwargs, encoding: EncodingKwargs) -> BgeEncoder:
    plain = BgeEncoder.from_settings(settings.replace(**encoding.settings))

    def named(name: str | None) -> str | None:
        return _prompt_by_name(name, plain, loading.prompts) if name is not None else None

    def instruction(explicit: str | None, names: tuple[str, ...]) -> str | None:
        role_prompt = next((loading.prompts[name] for name in names if name in loading.prompts), None)
        choices: tuple[Callable[[], str | None], ...] = (
            lambda: explicit,
            lambda: encoding.prompt,
            lambda: named(encoding.prompt_name),
            lambda: role_prompt,
            lambda: named(loading.default_prompt_name),
        )
        return next((text for choice in choices if (text := choice()) is not None), None)

    complete = plain.settings.replace(
        query_instruction=instruction(settings.query_instruction, QUERY_PROMPT_NAMES),
        document_instruction=instruction(settings.document_instruction, DOCUMENT_PROMPT_NAMES),
    )
    return plain if complete == plain.settings else BgeEncoder.from_settings(complete)


def _prompt_by_name(name: str, encoder: BgeEncoder, prompts: Mapping[str, str]) -> str:
    known = {**encoder.backend.prompts, **prompts}
    if name not in known:
        raise SettingsError(
            f"There is no prompt named {name!r}; the checkpoint and model_kwargs['prompts'] have "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    return known[name]
