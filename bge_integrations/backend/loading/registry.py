"""One loaded model a process for equal requests, however many encoders use it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from bge_integrations.backend.checkpoint.checks import request_for_base
from bge_integrations.backend.checkpoint.location import local_folder
from bge_integrations.backend.checkpoint.state import state_of
from bge_integrations.backend.guarantees.forks import ForkSafeLock
from bge_integrations.errors import ModelNotFoundError

if TYPE_CHECKING:
    from bge_integrations.backend.checkpoint.request import LoadRequest
    from bge_integrations.backend.loading.model import LoadedModel


class _Key(NamedTuple):
    request: LoadRequest
    content: Hashable


_models: WeakValueDictionary[_Key, LoadedModel] = WeakValueDictionary()
_loading: dict[_Key, ForkSafeLock] = {}
_guard = ForkSafeLock()


def acquire(request: LoadRequest) -> LoadedModel:
    """Returns the model for a request, loading it if nobody holds it.

    It lives as long as somebody holds what is returned. Threads that ask for the same model at once wait for one of
    them to load it; different models load side by side.

    Raises:
        BgeError: Whatever loading raises; nothing is kept then, so that a later call tries again.
    """
    asked = _key_of(request)
    with _guard:
        for serving in _serving(asked):
            model = _models.get(serving)
            if model is not None:
                return model
        lock = _loading.setdefault(asked, ForkSafeLock())
    with lock:
        key = _key_of(request)  # another thread may have fetched the model since, or somebody has replaced it
        model = _models.get(key)
        if model is None:
            from bge_integrations.backend.loading.model import LoadedModel

            try:
                model = LoadedModel(request)
                with _guard:
                    _models[_key_of_loaded(model, key)] = model
                    # Where it was not in the cache before, whoever asks while it is not there again joins it too.
                    _models[key] = model
            finally:
                with _guard:
                    _loading.pop(asked, None)
        return model


def _serving(key: _Key) -> Iterator[_Key]:
    """Yields what a loaded model may be known under that serves a request: bge-m3 whole gives dense vectors too."""
    yield key
    if key.request.purpose == "vectors":
        yield key._replace(request=dataclasses.replace(key.request, purpose="m3"))


def _key_of(request: LoadRequest) -> _Key:
    """Tells apart two states of one folder, so that a model that was replaced or trained again is loaded again.

    A model by its hub id is known by the snapshot that lies in the cache; None stands for one that does not yet.
    """
    folder = _folder_of(request)
    is_local = os.path.isdir(os.path.expanduser(request.model_name))
    name = os.path.abspath(os.path.expanduser(request.model_name)) if is_local else request.model_name
    return _Key(dataclasses.replace(request, model_name=name), _content(folder, request) if folder else None)


def _folder_of(request: LoadRequest) -> Path | None:
    folder = local_folder(request.model_name, request.revision)
    if folder is None:
        from bge_integrations.backend.checkpoint.hub import (
            cached_snapshot,  # imports the hub's client, which loading needs anyway
        )

        folder = cached_snapshot(request)
    return folder.resolve() if folder else None


def _content(folder: Path, request: LoadRequest) -> Hashable:
    """Returns the state of a folder's files, and of those of its base where it is an adapter."""
    base_request = request_for_base(folder, request)
    try:
        base = _folder_of(base_request) if base_request else None
    except ModelNotFoundError:
        base = None  # loading the adapter says so, in words of its own
    return str(folder), state_of(folder), (str(base), state_of(base)) if base else None


def _key_of_loaded(model: LoadedModel, key: _Key) -> _Key:
    """Returns the key of a model whose folder was not yet known when it was asked for: it has been fetched since.

    A folder that was known keeps the state that it had before it was read.
    """
    folder = model.checkpoint.folder
    known = isinstance(key.content, tuple) and key.content[0] == str(folder)
    return key if known else key._replace(content=_content(folder, model.request))
