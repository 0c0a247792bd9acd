"""The option --llm: a chat model by its provider, or an object of a module."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from bge_integrations._optional import require_package
from bge_integrations.errors import MissingExtraError, SettingsError

__all__ = ["PROVIDERS", "load_llm"]

PROVIDERS = frozenset(
    (
        *("anthropic", "azure_ai", "azure_openai", "bedrock", "bedrock_converse", "cohere", "deepseek", "fireworks"),
        *("google_anthropic_vertex", "google_genai", "google_vertexai", "groq", "huggingface", "ibm", "mistralai"),
        *("nvidia", "ollama", "openai", "openrouter", "perplexity", "together", "upstage", "xai"),
    )
)
"""Providers of LangChain's `init_chat_model`."""

_METHODS = ("invoke", "complete")


def load_llm(spec: str) -> object:
    """Returns the chat model that a text names.

    The part before the first colon decides. If it is a provider of LangChain's `init_chat_model`, such as openai, the
    rest is the name of the model. Otherwise it is a module, which may be in the current directory, and the rest is a
    name in it. Of the object with this name,

    - a chat model of LangChain or LlamaIndex is taken as it is;
    - a class, or a function without required arguments, is called to make one;
    - any other function is taken as the model: from a prompt to the answer.

    Args:
        spec: The text, such as "openai:gpt-4.1-mini" or "my_llm:make".

    Raises:
        SettingsError: The text has no colon, there is no such module or name in it, or the provider refuses.
        MissingExtraError: It names a provider, and the package langchain or that of the provider is not installed.
    """
    before, colon, name = spec.partition(":")
    if not (before and colon and name):
        raise SettingsError(
            f"llm={spec!r} must be PROVIDER:MODEL, such as openai:gpt-4.1-mini, or MODULE:NAME, such as my_llm:make."
        )
    return _of_provider(before, name) if before in PROVIDERS else _of_module(spec, before, name)


def _of_provider(provider: str, name: str) -> object:
    require_package("langchain.chat_models", "langchain")
    init_chat_model: Any = importlib.import_module("langchain.chat_models").init_chat_model
    try:
        model: object = init_chat_model(name, model_provider=provider)
    except ImportError as error:  # it names the package of the provider, and how to install it
        raise MissingExtraError(f"llm='{provider}:{name}': {error}") from error
    except Exception as error:  # each provider has errors of its own, such as that for a missing key
        raise SettingsError(f"llm='{provider}:{name}' can't be used: {error}") from error
    return model


def _of_module(spec: str, module: str, name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise SettingsError(
            f"llm={spec!r}: there is no module {module}, neither in {here} nor among the installed ones, and it is no "
            f"provider of LangChain ({', '.join(sorted(PROVIDERS))})."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise SettingsError(f"llm={spec!r}: the module {module} has no {name}.")
        found = getattr(found, part)
    return _made(found)


def _made(found: Any) -> object:  # noqa: ANN401 - whatever the module has
    if isinstance(found, type) or (not any(hasattr(found, method) for method in _METHODS) and _is_maker(found)):
        made: object = found()
        return made
    return found


def _is_maker(found: object) -> bool:
    """Whether it is a function without required arguments."""
    if not callable(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # a function in C that does not tell
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(one.default is not inspect.Parameter.empty or one.kind in optional for one in parameters)
