"""Whether files hold what their names say, as far as their first bytes tell: nothing is loaded and nothing is run."""

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
_LENGTH = 8  # bytes of a safetensors file that say how long its header is
_LONGEST_HEADER = 100_000_000  # as in the library safetensors
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
# What a tokenizer is made of where there is no tokenizer.json, and what nobody reads where there is one.
_VOCABULARIES = ("vocab.*", "merges.txt", "*.model", "*.spm", "bpe.codes")
_SHOWN = 16


def require_genuine_texts(folder: Path) -> None:
    """Checks the configuration and the tokenizer that lie in a folder, as `require_genuine` does.

    Files that no loader reads may be anything, and those that are not there are no matter of this function.

    Raises:
        ModelNotFoundError: A file is a symlink that leads nowhere.
        ModelLoadError: A file is not what its name says.
    """
    for name in _JSON_FILES:
        if os.path.lexists(folder / name):
            require_genuine(folder / name)
    if not os.path.lexists(folder / _TOKENIZER):
        for vocabulary in sorted(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
            require_genuine(vocabulary)


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds something that a tokenizer can be made of."""
    return (folder / _TOKENIZER).is_file() or any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern))


def require_genuine(path: Path) -> None:
    """Refuses a file that can't be what its name says.

    Git LFS leaves pointers where it is not installed; a browser or `wget` saves the page about a file; a full disk or
    a broken line leaves empty and cut-off files.

    Raises:
        ModelNotFoundError: There is no such file, or it is a symlink that leads nowhere.
        ModelLoadError: It is not what its name says, or it can't be read.
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
            f"{path} is a pointer of Git LFS ({size} bytes), and the file itself was not fetched. Run `git lfs "
            f"install` and `git lfs pull` in {path.parent}, or fetch the model with `hf download`."
        )
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise ModelLoadError(
            f"{path} is a web page, not the file: its address led to a login, an error or a page about the file. "
            f"{again}"
        )
    if path.suffix == ".safetensors":
        _require_safetensors(path, size, beginning, again)
    elif beginning.startswith(_ZIP) and not zipfile.is_zipfile(path):
        raise ModelLoadError(f"{path} is cut off after {size} bytes. {again}")
    elif path.name == _TOKENIZER and _last_bytes(path, size).rstrip()[-1:] not in (b"}", b""):
        raise ModelLoadError(f"{path} is cut off after {size} bytes: it does not end as JSON does. {again}")


def require_open_folder(folder: Path, *, listed: bool = True) -> None:
    """Refuses a folder that the system does not let this user look into.

    Args:
        folder: The folder.
        listed: Whether its files are to be found by listing it, and not by their names alone.

    Raises:
        ModelLoadError: It can't be looked into.
    """
    try:
        os.stat(os.path.join(folder, os.curdir))
        if listed:
            os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """Says that the system does not let a file or folder be read, and what to do about it."""
    return ModelLoadError(f"{path} can't be read: {error.strerror or error}. {_remedy(path, error)}")


def _remedy(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        command = f"chmod a+{'rx' if path.is_dir() else 'r'} {shlex.quote(str(path))}"
        example = f", for example with `{command}`" if os.name == "posix" else ""
        return f"Give the user that runs this the right to read it{example}."
    if isinstance(error, FileNotFoundError):
        return "Fetch or copy the model again."
    return "Check the disk or the network drive, or fetch the model again."


def _no_file(path: Path) -> ModelLoadError:
    if path.is_symlink() and not path.exists():
        return ModelNotFoundError(
            f"{path} is a symlink to {os.readlink(path)}, where there is nothing. Fetch or copy the model again, with "
            "what its symlinks lead to."
        )
    if path.exists():
        what = "a folder, not a file" if path.is_dir() else "no file"
        return ModelLoadError(f"{path} is {what}. Fetch or copy the model again.")
    return ModelNotFoundError(f"There is no file {path}. Fetch or copy the model again.")


def _require_safetensors(path: Path, size: int, beginning: bytes, again: str) -> None:
    length, first = int.from_bytes(beginning[:_LENGTH], "little"), beginning[_LENGTH : _LENGTH + 1]
    is_whole = length <= size - _LENGTH
    if size <= _LENGTH or (first == b"{" and length <= _LONGEST_HEADER and not is_whole):
        raise ModelLoadError(f"{path} is cut off after {size} bytes, within its header. {again}")
    if first != b"{" or length > _LONGEST_HEADER:
        what = "it is pickled" if beginning.startswith((_ZIP, _PICKLE)) else f"it begins with {beginning[:_SHOWN]!r}"
        raise ModelLoadError(f"{path} is no safetensors file: {what}. {again}")
    try:
        with path.open("rb") as file:
            file.seek(_LENGTH)
            header = json.loads(file.read(length))
        described = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        whole = _LENGTH + length + int(described)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{path} is no safetensors file: its header can't be read ({error}). {again}") from error
    if size < whole:
        raise ModelLoadError(
            f"{path} is cut off: it has {size} of the {whole} bytes that its header describes. {again}"
        )


def _last_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - 64))
        return file.read()
