"""The one place that renames, links, fsyncs folders and deletes (FORMAT.md W4, W6, W7).

POSIX says little about power cuts; on the local file systems that we allow-list, a file that was fsynced before its
rename, in a folder that was fsynced after it, is found whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import Any

from . import ids


def sync_folder(path: str) -> None:
    """Make the folder's entries durable. EINVAL (some network file systems) is tolerated, an I/O error is raised."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def make_folder(path: str, mode: int = 0o700) -> None:
    """Make a folder and its parents, each durable in its parent. An existing folder is left as it is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path.rstrip("/")) or "/"
    make_folder(parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)  # the umask is the user's; the spool's modes are ours
        with contextlib.suppress(PermissionError):  # a parent that may be entered but not read is not ours to fsync
            sync_folder(parent)


def write_file(path: str, data: bytes, mode: int = 0o600, *, exclusive: bool = False) -> bool:
    """Put a whole file under its name, durably, or not at all.

    With `exclusive`, an existing file wins and False is returned.
    """
    temporary = f"{path}.tmp-{ids.to_text(ids.new_id())}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here: a rename cannot be exclusive, but ids do not collide
                if os.path.exists(path):
                    return False
                os.rename(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        remove(temporary)
    sync_folder(os.path.dirname(path) or ".")
    return True


def write_json(path: str, value: Any, mode: int = 0o600, *, exclusive: bool = False) -> bool:
    """Put a small JSON file under its name, durably, or not at all."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_file(path, text.encode(errors="backslashreplace"), mode, exclusive=exclusive)


def read_json(path: str, limit: int = 1 << 20) -> Any:
    """Return a small JSON file's value. Raises OSError, or ValueError when it is not JSON or over the limit (bytes)."""
    with open(path, "rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is over {limit} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def rename(source: str, target: str) -> None:
    """Rename inside one folder, durably. The bytes must have been fsynced before."""
    os.rename(source, target)
    sync_folder(os.path.dirname(target))


def link(source: str, target: str) -> bool:
    """Hard-link a file. False when the target is there already; raises OSError where links do not work."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def remove(path: str) -> bool:
    """Delete a file; False when there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
