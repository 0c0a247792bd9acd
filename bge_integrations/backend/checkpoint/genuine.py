"""Checks by their first bytes whether files are what their names say. Nothing is loaded or run."""

from __future__ import annotations

import json
import os
import shlex
import zipfile
from pathlib import Path

from bge_integrations.errors import ModelLoadError, ModelNotFoundError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LENGTH = 8  # bytes at the start of a safetensors file, with the length of its header
_LONGEST_HEADER = 100_000_000  # limit of the library safetensors
_JSON_FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER = "tokenizer.json"
# The libraries read these only if there is no tokenizer.json.
_VOCABULARIES = ("vocab.*", "merges.txt", "*.model", "*.spm", "bpe.codes")
_SHOWN = 16


def require_genuine_texts(folder: Path) -> None:
    """Checks the configuration and tokenizer files in a folder by `require_genuine`.

    It does not check files that no loader reads, and does not look for missing files.

    Raises:
        ModelNotFoundError: A file is a broken symlink.
        ModelLoadError: A file is not what its name says.
    """
    for name in _JSON_FILES:
        if os.path.lexists(folder / name):
            require_genuine(folder / name)
    if not os.path.lexists(folder / _TOKENIZER):
        for vocabulary in sorted(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
            require_genuine(vocabulary)


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has files for a tokenizer."""
    return (folder / _TOKENIZER).is_file() or any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern))


def require_genuine(path: Path) -> None:
    """Refuses a file that can't be what its name says.

    Frequent causes: git without LFS leaves pointers, a browser or `wget` saves a web page about the file, and a full
    disk or a lost connection leaves an empty or truncated file.

    Raises:
        ModelNotFoundError: There is no such file, or it is a broken symlink.
        ModelLoadError: The file is not what its name says, or it can't be read.
    """
    if not os.path.isfile(path):
        raise _no_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(1024)
    except OSError as error:
        raise unreadable(path, error) from error
    again = "Fetch it again, for example with `hf download`."
    if not size:
        raise ModelLoadError(f"{path} is empty. {again}")
    if beginning.startswith(_LFS_POINTER):
        raise ModelLoadError(
            f"{path} is a Git LFS pointer ({size} bytes), and the file itself was not fetched. Run `git lfs "
            f"install` and `git lfs pull` in {path.parent}, or fetch the model with `hf download`."
        )
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise ModelLoadError(
            f"{path} is a web page, not the file: its address led to a login page, an error page or a page about the "
            f"file. {again}"
        )
    if path.suffix == ".safetensors":
        _require_safetensors(path, size, beginning, again)
    elif beginning.startswith(_ZIP) and not zipfile.is_zipfile(path):
        raise ModelLoadError(f"{path} is cut off after {size} bytes. {again}")
    elif path.name == _TOKENIZER and _last_bytes(path, size).rstrip()[-1:] not in (b"}", b""):
        raise ModelLoadError(f"{path} is cut off after {size} bytes: it does not end as JSON does. {again}")


def require_open_folder(folder: Path, *, listed: bool = True) -> None:
    """Refuses a folder that this user has no permission to open.

    Args:
        folder: Path of the folder.
        listed: Whether the permission to list the folder's files is needed too.

    Raises:
        ModelLoadError: The folder can't be opened or listed.
    """
    try:
        os.stat(os.path.join(folder, os.curdir))
        if listed:
            os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """Returns the error for a file or folder that the system can't read, with the fix."""
    return ModelLoadError(f"{path} can't be read: {error.strerror or error}. {_remedy(path, error)}")


def _remedy(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        command = f"chmod a+{'rx' if path.is_dir() else 'r'} {shlex.quote(str(path))}"
        example = f", for example with `{command}`" if os.name == "posix" else ""
        return f"Give the user that runs this program permission to read it{example}."
    if isinstance(error, FileNotFoundError):
        return "Fetch or copy the model again."
    return "Check the disk or the network drive, or fetch the model again."


def _no_file(path: Path) -> ModelLoadError:
    if path.is_symlink() and not path.exists():
        return ModelNotFoundError(
            f"{path} is a symlink to {os.readlink(path)}, which does not exist. Fetch or copy the model again, with "
            "the targets of its symlinks."
        )
    if path.exists():
        what = "a folder, not a file" if path.is_dir() else "not a regular file"
        return ModelLoadError(f"{path} is {what}. Fetch or copy the model again.")
    return ModelNotFoundError(f"There is no file {path}. Fetch or copy the model again.")


def _require_safetensors(path: Path, size: int, beginning: bytes, again: str) -> None:
    length, first = int.from_bytes(beginning[:_LENGTH], "little"), beginning[_LENGTH : _LENGTH + 1]
    is_whole = length <= size - _LENGTH
    if size <= _LENGTH or (first == b"{" and length <= _LONGEST_HEADER and not is_whole):
        raise ModelLoadError(f"{path} is cut off after {size} bytes, within its header. {again}")
    if first != b"{" or length > _LONGEST_HEADER:
        what = "it is pickled" if beginning.startswith((_ZIP, _PICKLE)) else f"it begins with {beginning[:_SHOWN]!r}"
        raise ModelLoadError(f"{path} is not a safetensors file: {what}. {again}")
    try:
        with path.open("rb") as file:
            file.seek(_LENGTH)
            header = json.loads(file.read(length))
        described = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        whole = _LENGTH + length + int(described)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        what = f"its header can't be read ({error})"
        raise ModelLoadError(f"{path} is not a safetensors file: {what}. {again}") from error
    if size < whole:
        raise ModelLoadError(
            f"{path} is cut off: it has {size} of the {whole} bytes that its header describes. {again}"
        )


def _last_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - 64))
        return file.read()
