"""Finds the folder on this machine that a model's name means."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from bge_integrations.backend.checkpoint.genuine import require_open_folder
from bge_integrations.catalogue import suggest
from bge_integrations.errors import ModelNotFoundError

# A folder with any of these files is a model, even if its name looks like a hub cache.
_MODEL_FILES = ("config.json", "modules.json", "adapter_config.json", "bge.json")
_REPOSITORY = "models--"


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """Returns the folder that a name means; `None` if the name can only be a model on the hub.

    A repository's folder in a hub cache (`models--ORG--NAME`, or `snapshots` in it) means one of its snapshots: the
    snapshot of `revision` or of `main`, or the only one.

    Args:
        name: A hub id or a path.
        revision: Revision of the snapshot, if the folder has several.

    Raises:
        ModelNotFoundError: The path is not a folder, or the folder contains several models.
        ModelLoadError: This user has no permission to open the folder.
    """
    # pathlib raises for too long names, unknown users and closed folders; os.path returns False.
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        require_open_folder(folder, listed=False)
        return _followed(folder.resolve(), name, revision)
    if os.path.isfile(folder):
        raise ModelNotFoundError(
            f"{name} is a file; model_name takes a folder or a hub id. If the file is part of the model, give its "
            f"folder, {folder.parent}."
        )
    if os.path.islink(folder):
        raise ModelNotFoundError(f"{name} is a symlink to {os.readlink(folder)}, which is not a folder.")
    if _looks_like_path(name):
        raise ModelNotFoundError(
            f"{no_folder(name)} Check the path, or give a hub id such as 'BAAI/bge-small-en-v1.5'.{did_you_mean(name)}"
        )
    return None


def name_without_path(name: str) -> str:
    """Returns a model's name for records that travel: a hub id, or the last part of a folder's path.

    The folder of a hub cache gives the hub id.
    """
    folder = Path(os.path.expanduser(name))
    if not os.path.isdir(folder):
        return name
    folder = folder.resolve()
    for part in reversed(folder.parts):
        if part.startswith(_REPOSITORY):
            return part.removeprefix(_REPOSITORY).replace("--", "/")
    return folder.name


def no_folder(name: str) -> str:
    """Returns a sentence for errors: there is no such folder."""
    return f"There is no folder {name!r} (looked in {Path.cwd()})."


def did_you_mean(name: str) -> str:
    """Returns a question for errors that suggests a folder or model with a similar name; "" if there is none."""
    meant = _near_folder(name) or suggest(name)
    return f" Did you mean {meant!r}?" if meant else ""


def hub_repository(folder: Path) -> str | None:
    """Returns the hub id of a folder in a hub cache; `None` for any other folder."""
    for part in (folder, *folder.parents[:3]):
        if part.name.startswith(_REPOSITORY) and (part / "snapshots").is_dir():
            return part.name.removeprefix(_REPOSITORY).replace("--", "/")
    return None


def _near_folder(name: str) -> str | None:
    parent = os.path.dirname(os.path.expanduser(name.strip()))
    if not parent or not os.path.isdir(parent):
        return None
    try:
        beside = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except OSError:
        return None
    near = difflib.get_close_matches(os.path.basename(name.strip()), beside, 1, 0.8)
    return os.path.join(os.path.dirname(name.strip()), near[0]) if near else None


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or "\\" in name or name.count("/") > 1


def _followed(folder: Path, name: str, revision: str | None) -> Path:
    if any(os.path.lexists(folder / file) for file in _MODEL_FILES):
        return folder
    repository = folder.parent if folder.name == "snapshots" else folder
    if os.path.isdir(repository / "snapshots") and (
        repository.name.startswith(_REPOSITORY) or os.path.isdir(repository / "refs")
    ):
        return _snapshot(repository, name, revision)
    for cache in (folder, folder / "hub"):
        models = _repositories(cache)
        if models:
            others = " and others" if len(models) > 3 else ""
            raise ModelNotFoundError(
                f"{name} is a hub cache, which contains {', '.join(models[:3])}{others}. "
                f"Give the model's id as model_name, and cache_folder={str(cache)!r}."
            )
    return folder


def _repositories(cache: Path) -> list[str]:
    try:
        return sorted(filter(None, (hub_repository(path) for path in cache.glob(f"{_REPOSITORY}*"))))
    except OSError:
        return []


def _snapshot(repository: Path, name: str, revision: str | None) -> Path:
    snapshots = sorted(path for path in (repository / "snapshots").iterdir() if path.is_dir())
    commit = read_ref(repository, revision or "main") or revision
    for snapshot in snapshots:
        if snapshot.name == commit:
            return snapshot
    if not snapshots:
        raise ModelNotFoundError(
            f"{name} contains no snapshot of a model: the fetch failed or was interrupted. "
            f"Fetch it with `hf download {hub_repository(repository) or 'ORGANISATION/NAME'}`."
        )
    if len(snapshots) == 1 and revision is None:
        return snapshots[0]
    which = f"but none has the revision {revision!r}" if revision else "but refs/main does not say which to use"
    raise ModelNotFoundError(
        f"{name} contains {len(snapshots)} snapshots, {which}; give one of them as model_name: "
        f"{', '.join(map(str, snapshots))}."
    )


def read_ref(repository: Path, revision: str) -> str | None:
    """Returns the commit of a branch or tag when it was last fetched into the cache; `None` if it was not."""
    try:
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None
