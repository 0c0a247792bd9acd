"""One loaded model a process for equal requests, however many encoders use it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from bge_integrations.backend.forking import ForkSafeLock

if TYPE_CHECKING:
    from bge_integrations.backend.loading import LoadedModel
    from bge_integrations.backend.request import LoadRequest


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
    key = _key_of(request)
    with _guard:
        for serving in _serving(key):
            model = _models.get(serving)
            if model is not None:
                return model
        lock = _loading.setdefault(key, ForkSafeLock())
    with lock:
        model = _models.get(key)
        if model is None:
            from bge_integrations.backend.loading import LoadedModel

            try:
                model = LoadedModel(request)
                with _guard:
                    _models[key] = model
            finally:
                with _guard:
                    _loading.pop(key, None)
        return model


def _serving(key: _Key) -> Iterator[_Key]:
    """Yields what a loaded model may be known under that serves a request: bge-m3 whole gives dense vectors too."""
    yield key
    if key.request.purpose == "vectors":
        yield key._replace(request=dataclasses.replace(key.request, purpose="m3"))


def _key_of(request: LoadRequest) -> _Key:
    """Tells apart two states of one local folder, so that a model trained again in place is loaded again."""
    folder = Path(request.model_name).expanduser()
    if not folder.is_dir():
        return _Key(request, None)
    files = sorted(path for pattern in ("*.json", "*.safetensors", "*.bin") for path in folder.rglob(pattern))
    content = tuple((str(path.relative_to(folder)), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _Key(dataclasses.replace(request, model_name=os.path.abspath(folder)), content)
