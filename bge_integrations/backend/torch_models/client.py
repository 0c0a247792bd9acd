"""A library's own model for users. It refuses changes of settings that this package's engines would not follow."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from bge_integrations.errors import SettingsError
from bge_integrations.settings import EncoderSettings, RerankerSettings

_TOKENIZING = "transformers_kwargs (TransformersKwargs.of(processor={…}))"
_INSTRUCTION = "query_instruction, or the instruction of documents,"
_OF_TRANSFORMERS = {
    "max_seq_length": "max_length",
    "query_length": "max_length",
    "document_length": "max_length",
    "processing_kwargs": "max_length",
    "tokenizer": _TOKENIZING,
    "processor": _TOKENIZING,
    "do_lower_case": _TOKENIZING,
}
_OF_POOLINGS = {"pooling_mode": "pooling", "include_prompt": "it in the checkpoint's own files"}
_OF_TOKENIZERS = {"model_max_length": "max_length", "max_len": "max_length"}
_OF_MODELS = {
    **{field.name: field.name for kind in (EncoderSettings, RerankerSettings) for field in dataclasses.fields(kind)},
    **_OF_TRANSFORMERS,
    "prompts": _INSTRUCTION,
    "default_prompt_name": _INSTRUCTION,
    "normalize_embeddings": "normalize",
    "activation_fn": "normalize",
    "default_activation_function": "normalize",
    "similarity_fn_name": "the distance in the vector store",
    "dtype": "precision",
}
_INSTEAD: Mapping[str, Mapping[str, str]] = {
    "model": _OF_MODELS,
    "transformer": _OF_TRANSFORMERS,
    "pooling": _OF_POOLINGS,
    "tokenizer": _OF_TOKENIZERS,
}
"""The setting of this package to use instead, by kind of object and attribute."""

_MOVES = ("to", "cpu", "cuda", "half", "bfloat16", "float", "double")


def kept(model: Any) -> Any:  # noqa: ANN401 - a SentenceTransformer, a CrossEncoder or a decoder
    """Makes a model, its modules and its tokenizer refuse changes. A second call has no effect.

    Each object gets a class that is derived from its own. Pickles and deep copies have the library's class again, and
    can be changed.

    Args:
        model: A SentenceTransformer, a CrossEncoder, or a decoder of transformers.

    Returns:
        The same object.
    """
    if isinstance(model, _Kept):
        return model
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        _keep(tokenizer, "tokenizer")
    for module in model.children():
        if hasattr(module, "max_seq_length"):
            _keep(module, "transformer")
        elif hasattr(module, "pooling_mode"):
            _keep(module, "pooling")
    if isinstance(getattr(model, "prompts", None), dict):
        model.prompts = _KeptPrompts(model.prompts)
    getattr(model, "similarity_fn_name", None)  # its first read sets it, which would be refused later
    _keep(model, "model")
    return model


class _Kept:
    """Marks the classes that `_kept_class` makes."""

    __slots__ = ()


def _keep(instance: Any, kind: str) -> None:  # noqa: ANN401 - a library's object
    if not isinstance(instance, _Kept):
        instance.__class__ = _kept_class(type(instance), kind)


def _kept_class(own: type, kind: str) -> type:
    """Makes a class that can be assigned to an object's `__class__`.

    Its methods are in the class itself: with a base before the object's own class, Python refuses the assignment.
    """
    namespace = {
        # A saved model records the names of its classes.
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        # The libraries' own methods use the class, and pass it to other processes.
        "__class__": property(lambda _: own),
        "__setattr__": functools.partialmethod(_set, own, kind),
        "__reduce_ex__": functools.partialmethod(_reduce, own),
    }
    if kind == "tokenizer":
        namespace |= {name: functools.partialmethod(_add_tokens, name) for name in ("add_tokens", "add_special_tokens")}
    else:
        namespace |= {name: functools.partialmethod(_move, own, name) for name in _MOVES if hasattr(own, name)}
        namespace["train"] = functools.partialmethod(_train, own)
    return types.new_class(own.__name__, (own, _Kept), exec_body=lambda body: body.update(namespace))


def _refuse(what: str, instead: str) -> NoReturn:
    raise SettingsError(
        f"{what} can't be changed here: other encoders share this object, and compute by their own settings. "
        f"{instead} instead, or change a copy of your own (copy.deepcopy)."
    )


def _set(self: Any, own: Any, kind: str, name: str, value: object) -> None:  # noqa: ANN401 - a library's object
    known = _INSTEAD[kind]
    if name in known:
        _refuse(name, f"Set {known[name]}")
    if kind == "tokenizer" and not name.startswith("_"):
        _refuse(name, f"Set {_TOKENIZING}")
    own.__setattr__(self, name, value)


def _reduce(self: Any, own: Any, protocol: Any) -> Any:  # noqa: ANN401 - as `object` has it
    _, _, *state = own.__reduce_ex__(self, protocol)
    return object.__new__, (own,), *state


def _add_tokens(self: Any, name: str, *_: object, **__: object) -> NoReturn:  # noqa: ARG001, ANN401 - as above
    _refuse(f"The vocabulary ({name})", "Give the folder of a model with these tokens as model_name")


def _train(self: Any, own: Any, mode: bool = True) -> Any:  # noqa: ANN401 - as above
    if mode:
        _refuse("The mode", "Load the folder with sentence-transformers to train it")
    return own.train(self, mode)


def _move(self: Any, own: Any, name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as above
    """Refuses moves and casts, except to the device and dtype that the model already has, which libraries call."""
    import torch

    weight = next(self.parameters(), None)
    if weight is None:
        return getattr(own, name)(self, *args, **kwargs)
    probe = torch.empty(0, dtype=weight.dtype, device=weight.device)
    moved = getattr(probe, name)(*args, **kwargs)
    if moved.dtype != probe.dtype:
        _refuse(f"The precision (to {moved.dtype})", "Set precision")
    if moved.device != probe.device:
        _refuse(f"The device (to {moved.device})", "Set device")
    return getattr(own, name)(self, *args, **kwargs)


class _KeptPrompts(dict[str, str]):
    """Prompts as a read-only dictionary, which is saved and copied as a plain one."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        _refuse("prompts", f"Set {_INSTRUCTION}")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        return dict, (dict(self),)
