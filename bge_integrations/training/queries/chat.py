"""Chat models of both frameworks, and functions, behind one small interface.

They are told apart by their methods, so that no framework has to be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.errors import SettingsError
from bge_integrations.texts import is_text, kind_of, plain

__all__ = ["Chat", "as_chat"]

_MODEL_NAMES = ("model_name", "model", "model_id", "deployment_name")


@dataclass(frozen=True)
class Chat:
    """A chat model.

    Attributes:
        name: Its name. Kept answers depend on it.
        ask: Takes a prompt, and returns the text of the answer.
    """

    name: str
    ask: Callable[[str], Coroutine[Any, Any, str]]


def as_chat(llm: object, name: str | None = None) -> Chat:
    """Returns how a model is asked.

    Models of the frameworks are called by their blocking methods, each call in a thread of its own. Their asynchronous
    ones may depend on the event loop that they were first used in, or run in threads that nothing can leave.

    Args:
        llm: A chat model or any other runnable of LangChain, an LLM of LlamaIndex, or a function of a prompt, which may
            be `async`. A function may return a text or a message of either framework.
        name: A name for it; `None`: its class, and the name of its model if it has one.

    Raises:
        SettingsError: It is none of these.
    """
    if not isinstance(llm, type):
        chosen = _name_of(llm) if name is None else name
        for method in ("invoke", "complete"):  # LangChain, LlamaIndex
            if callable(getattr(llm, method, None)):
                return Chat(chosen, partial(_in_thread, getattr(llm, method)))
        if _is_async(llm):
            return Chat(chosen, partial(_on_loop, llm))
        if callable(llm):
            return Chat(chosen, partial(_in_thread, llm))
    raise SettingsError(
        f"llm={llm!r} is {kind_of(llm)}; give a chat model of LangChain or LlamaIndex, or a function that takes a "
        "prompt and returns the answer."
    )


async def _in_thread(call: Callable[[str], Any], prompt: str) -> str:
    answer = await in_thread(partial(copy_context().run, call, prompt), own=True)
    return _text_of(await answer if inspect.isawaitable(answer) else answer)


async def _on_loop(call: Any, prompt: str) -> str:  # noqa: ANN401 - an async function
    return _text_of(await call(prompt))


def _is_async(call: object) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def _text_of(answer: Any) -> str:  # noqa: ANN401 - of either framework
    """Returns the text of a LangChain message, or of a LlamaIndex response."""
    if hasattr(answer, "message"):  # LlamaIndex's ChatResponse
        answer = answer.message
    for value in (answer, getattr(answer, "text", None), getattr(answer, "content", None)):
        if is_text(value):
            return plain(value)
    raise SettingsError(
        f"llm returned {kind_of(answer)}, which has no text. It must return a text, or a message of LangChain or "
        "LlamaIndex."
    )


def _name_of(llm: object) -> str:
    bound = getattr(llm, "bound", llm)  # LangChain's binding of arguments
    described = getattr(bound, "metadata", None)  # LlamaIndex's
    names = (getattr(it, key, None) for it in (bound, described) for key in _MODEL_NAMES)
    model = next((name for name in names if is_text(name) and name), None)
    own = getattr(bound, "__qualname__", None) or type(bound).__qualname__
    return f"{own} {model}" if model else str(own)
