"""Whole objects in a folder or bucket, by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import fs

from turnwise_actor.access.files import sync
from turnwise_learner.store.errors import StoreError, StoreRefusedError

_WHOLE_OR_NOT = ("s3", "gcs", "abfs")
"""Filesystems where an object appears when it is complete; elsewhere it is written aside and moved."""
_ASIDE = ".aside"
"""One name a folder: who writes there is alone, and what a killed one left is overwritten."""


def shown(uri: str) -> str:
    """A URI without the keys that may be in it, for logs and people."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri).partition("?")[0]


def _complete(uri: str) -> str:
    if "://" not in uri:
        return str(Path(uri).resolve())
    if uri.startswith("s3://") and "allow_delayed_open" not in uri:
        # A small object in one request, not in three.
        return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"
    return uri


class ObjectStore:
    """A folder or bucket that objects are put into, whole or not at all. May be used from any thread.

    Its methods raise OSError where the store is away, full or not allowed.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    @classmethod
    def open(cls, uri: str) -> ObjectStore:
        """The store of a URI, or of a plain path.

        Raises:
            StoreRefusedError: pyarrow knows no such filesystem.
            OSError: It cannot be reached.
        """
        try:
            filesystem, root = fs.FileSystem.from_uri(_complete(uri))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise StoreRefusedError(f"--checkpoint-store {shown(uri)}: {error}") from error
        if not root:
            raise StoreRefusedError(f"--checkpoint-store {shown(uri)}: wanted a bucket or folder after it")
        return cls(filesystem, root)

    def put(self, name: str, data: bytes) -> None:
        """Writes an object, in the place of one that is there."""
        target = self._begin(name)
        # Else a name in .gz has it compressed.
        with self._fs.open_output_stream(target, compression=None) as stream:
            stream.write(data)
        self._finish(target, name, len(data))

    def put_json(self, name: str, value: Any) -> None:
        """Writes an object that people can read."""
        self.put(name, json.dumps(value, indent=1).encode())

    def put_file(self, name: str, source: Path) -> None:
        """Copies a file; it must not change meanwhile."""
        target = self._begin(name)
        fs.copy_files(
            str(source),
            target,
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self._fs,
            use_threads=False,
        )
        self._finish(target, name, source.stat().st_size)

    def get(self, name: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: There is none of this name.
        """
        with self._fs.open_input_stream(self._path(name), compression=None) as stream:
            return bytes(stream.read())

    def get_json(self, name: str) -> Any:
        """What `put_json` wrote; None where there is no such object.

        Raises:
            StoreError: It is something else.
        """
        try:
            return json.loads(self.get(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{name} in the store cannot be read: {error}") from error

    def get_file(self, name: str, target: Path) -> None:
        """Copies an object to a file."""
        fs.copy_files(
            self._path(name),
            str(target),
            source_filesystem=self._fs,
            destination_filesystem=fs.LocalFileSystem(),
            use_threads=False,
        )

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all objects below a folder, by their names from there."""
        base = self._path(folder)
        found = self._fs.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        files = {info.path: info.size for info in found if info.type == fs.FileType.File}
        names = {path.removeprefix(base).lstrip("/"): size for path, size in files.items()}
        return {name: size for name, size in names.items() if name.rpartition("/")[2] != _ASIDE}

    def delete(self, name: str) -> None:
        """Removes an object; harmless where there is none."""
        if self._fs.get_file_info(self._path(name)).type == fs.FileType.File:
            self._fs.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Removes all objects below a folder; harmless where there are none."""
        if self._fs.get_file_info(self._path(name)).type == fs.FileType.Directory:
            self._fs.delete_dir(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _begin(self, name: str) -> str:
        """Where to write an object to."""
        if self._fs.type_name in _WHOLE_OR_NOT:
            return self._path(name)
        folder = self._path(name).rpartition("/")[0]
        self._fs.create_dir(folder, recursive=True)
        return f"{folder}/{_ASIDE}"

    def _finish(self, target: str, name: str, size: int) -> None:
        written = self._fs.get_file_info(target).size
        if written != size:
            raise OSError(f"{name} in the store has {written} bytes after {size} were written")
        if self._fs.type_name == "local":
            sync(Path(target))
        if target != self._path(name):
            self._fs.move(target, self._path(name))
