"""Files and objects of a run: the half of Run that copies bytes into the spool."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from simspool.spool import Drop, InvalidRecord, RunFolder, Spool, UnreadableFile, Writer

from . import validation as check
from .errors import MISTAKES
from .notice import say
from .part import Part

if TYPE_CHECKING:
    from simspool.spool.blobs import Blob

Category = Literal["input", "output", "code"]


class Saving(Part):
    """Saving files and objects."""

    _writer: Writer | None

    def save_file(
        self,
        file_path: str | os.PathLike[str],
        category: Category,
        filetype: str | None = None,
        preserve_path: bool = False,
        name: str | None = None,
        *,
        file_type: str | None = None,
        preserve_path_relative_to: Literal["cwd", "git"] | None = None,
        snapshot: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Copy a file's present content into the spool and record it. A content that the spool has already takes no further space.

        The name is by default the file's own; with `preserve_path` the path relative to the working folder. `filetype` is a
        MIME type, by default guessed from the name. The copy is always a snapshot. Raises UnreadableFile for a missing
        file, a folder, a FIFO, a device or one that may not be read, InvalidRecord for invalid values. A full disk is
        False.
        """
        try:
            path = os.fsdecode(file_path)
            kind = filetype if filetype is not None else file_type
            relative_to = preserve_path_relative_to or ("cwd" if preserve_path else None)
            stored = check.check_name("artifact name", name) if name is not None else _stored_name(path, relative_to)
            body: dict[str, Any] = {
                "name": stored, "category": check.check_category(category), "path": os.path.abspath(path),
                "mime": check.check_mime(kind) if kind is not None else _guess(path),
            }  # fmt: skip
            if metadata is not None:
                body["metadata"] = check.check_metadata(metadata)
            return self._save(_file(path), body)
        except TypeError:
            return self._mistake(InvalidRecord(f"file_path must be a path, not {file_path!r}"[:300]))
        except MISTAKES as error:
            return self._mistake(error)

    def save_directory(
        self,
        directory: str | os.PathLike[str],
        category: Category,
        filetype: str | None = None,
        preserve_path: bool = False,
        *,
        file_type: str | None = None,
    ) -> bool:
        """Save every file below a folder, named by its path in it (with `preserve_path`: relative to the working folder).

        Links to files are followed (not those that another user planted), links to folders are not. What is not a regular file, or
        cannot be read, is counted, named on stderr and left out; the result is then False. The spool itself is left out.
        Raises UnreadableFile when the folder is none, InvalidRecord for invalid values.
        """
        try:
            root = os.fsdecode(directory)
            check.check_category(category)
            kind = filetype if filetype is not None else file_type
            if kind is not None:
                check.check_mime(kind)
            if not os.path.isdir(root):
                raise UnreadableFile(errno.ENOTDIR, f"cannot save {root}: it is not a folder")
            if self._ready("save_directory") is None:
                return self._default()
            kept = True
            for path in self._files_below(root):
                stored = _stored_name(path, "cwd") if preserve_path else os.path.relpath(path, root)
                body = {"name": stored, "category": category, "mime": kind or _guess(path), "path": os.path.abspath(path)}
                try:
                    kept = self._save(_file(path), body) and kept
                except UnreadableFile as error:
                    kept = self._left_out(error)
            return kept
        except TypeError:
            return self._mistake(InvalidRecord(f"directory must be a path, not {directory!r}"[:300]))
        except MISTAKES as error:
            return self._mistake(error)

    def save_all(
        self,
        items: Iterable[str | os.PathLike[str]],
        category: Category,
        filetype: str | None = None,
        preserve_path: bool = False,
        *,
        file_type: str | None = None,
    ) -> bool:
        """Save files and folders, as `save_file` and `save_directory` do; True when all of them are kept."""
        kept = True
        for item in items:
            if os.path.isdir(item):
                kept = self.save_directory(item, category, filetype, preserve_path, file_type=file_type) and kept
            else:
                kept = self.save_file(item, category, filetype, preserve_path, file_type=file_type) and kept
        return kept

    def save_object(
        self,
        obj: Any,
        category: Category,
        name: str | None = None,
        allow_pickle: bool = False,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Save an object: what JSON holds, NumPy arrays, pandas data frames, torch tensors, plotly and matplotlib figures.

        The name is by default the content's SHA-256. Other objects are pickled when `allow_pickle`. Raises NotSerialisable, and
        InvalidRecord for invalid values.
        """
        try:
            body: dict[str, Any] = {
                "name": check.check_name("artifact name", name) if name is not None else None, "category": check.check_category(category),
                "path": "",
            }  # fmt: skip
            if metadata is not None:
                body["metadata"] = check.check_metadata(metadata)
            if self._ready("save_object") is None:
                return self._default()
            from .artifacts import serialise

            data, body["mime"] = serialise(obj, allow_pickle=allow_pickle)
            return self._save(_bytes(data), body)
        except MISTAKES as error:
            return self._mistake(error)

    def _files_below(self, root: str) -> Iterable[str]:
        spool = self._recording.spool if self._recording is not None else None
        own = os.path.realpath(spool.path) if spool is not None else None
        for base, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if os.path.realpath(os.path.join(base, f)) != own)
            for file in sorted(files):
                yield os.path.join(base, file)

    def _left_out(self, error: UnreadableFile) -> bool:
        say(f"{error.strerror or error}; left out and counted")
        if self._writer is not None:
            self._writer.count_drop(Drop.FILE_UNREADABLE)
        return False

    def _save(self, put: Callable[[Spool, RunFolder], Blob], body: dict[str, Any]) -> bool:
        if self._ready("save_file") is None or self._recording is None:
            return self._default()
        return self._recording.keep(put, body)


def _file(path: str) -> Callable[[Spool, RunFolder], Blob]:
    from simspool.spool import blobs  # loads hashlib: only for who saves something

    return lambda spool, folder: blobs.put_file(spool, folder, path)


def _bytes(data: bytes) -> Callable[[Spool, RunFolder], Blob]:
    from simspool.spool import blobs

    return lambda spool, folder: blobs.put_bytes(spool, folder, data)


def _stored_name(path: str, relative_to: str | None) -> str:
    """Return an artifact's default name: metadata only, never used as a path by anything that stores it."""
    if relative_to is None:
        return os.path.basename(os.path.normpath(path))
    base = os.getcwd()
    if relative_to == "git":
        at = base
        while at != os.path.dirname(at) and not os.path.exists(os.path.join(at, ".git")):
            at = os.path.dirname(at)
        base = at if os.path.exists(os.path.join(at, ".git")) else base
    full = os.path.abspath(path)
    return os.path.relpath(full, base) if full.startswith(base.rstrip("/") + "/") else full.lstrip("/")


def _guess(path: str) -> str:
    import mimetypes

    return mimetypes.guess_type(path)[0] or "application/octet-stream"
