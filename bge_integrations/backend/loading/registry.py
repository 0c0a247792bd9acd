"""Shares loaded models: all encoders with equal requests in a process use one model."""

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
    """Returns the loaded model for a request; loads it if it is not in memory.

    The model stays in memory as long as the returned object is referenced. Only one thread loads a model; others that
    request it meanwhile wait. Different models load in parallel.

    Raises:
        BgeError: Loading failed. Nothing is kept, and a later call tries again.
    """
    asked = _key_of(request)
    with _guard:
        for serving in _serving(asked):
            model = _models.get(serving)
            if model is not None:
                return model
        lock = _loading.setdefault(asked, ForkSafeLock())
    with lock:
        key = _key_of(request)  # meanwhile the model may have been fetched or replaced
        model = _models.get(key)
        if model is None:
            from bge_integrations.backend.loading.model import LoadedModel

            try:
                model = LoadedModel(request)
                with _guard:
                    _models[_key_of_loaded(model, key)] = model
                    # If the hub's cache is emptied later, requests for this model still find it.
                    _models[key] = model
            finally:
                with _guard:
                    _loading.pop(asked, None)
        return model


def _serving(key: _Key) -> Iterator[_Key]:
    """Yields the keys of models that serve a request. A model loaded for "m3" gives dense vectors too."""
    yield key
    if key.request.purpose == "vectors" and key.request.endpoint is None:
        yield key._replace(request=dataclasses.replace(key.request, purpose="m3"))


def _key_of(request: LoadRequest) -> _Key:
    """Returns a key with the state of the model's files, so that a changed model is loaded again.

    For a hub id it is the state of the snapshot in the cache; `None` if the model is not in the cache yet.
    """
    if request.endpoint is not None:
        return _Key(request, None)
    folder = _folder_of(request)
    is_local = os.path.isdir(os.path.expanduser(request.model_name))
    name = os.path.abspath(os.path.expanduser(request.model_name)) if is_local else request.model_name
    return _Key(dataclasses.replace(request, model_name=name), _content(folder, request) if folder else None)


def _folder_of(request: LoadRequest) -> Path | None:
    folder = local_folder(request.model_name, request.revision)
    if folder is None:
        from bge_integrations.backend.checkpoint.hub import (
            cached_snapshot,  # the import of the hub's client is slow, and local folders don't need it
        )

        folder = cached_snapshot(request)
    return folder.resolve() if folder else None


def _content(folder: Path, request: LoadRequest) -> Hashable:
    """Returns the state of a folder's files and, for an adapter, of its base's files."""
    base_request = request_for_base(folder, request)
    try:
        base = _folder_of(base_request) if base_request else None
    except ModelNotFoundError:
        base = None  # loading the adapter raises a clearer error
    return str(folder), state_of(folder), (str(base), state_of(base)) if base else None


def _key_of_loaded(model: LoadedModel, key: _Key) -> _Key:
    """Returns the key of a loaded model, with the state of its folder if loading has fetched it.

    For a folder that was known before, the key keeps the state from before it was read.
    """
    if key.request.endpoint is not None:
        return key
    folder = model.checkpoint.folder
    known = isinstance(key.content, tuple) and key.content[0] == str(folder)
    return key if known else key._replace(content=_content(folder, model.request))
