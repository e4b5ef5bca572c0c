"""What `add_process` starts: the command line out of its parts, checked before anything begins.

Paths are relative to the folder of the call, wherever the process itself will work.
"""

from __future__ import annotations

import errno
import numbers
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simspool.spool import InvalidRecord, UnreadableFile

from .errors import ProcessNotStarted, ProgramNotFound

_LONGEST = 16_000  # characters of a command line in records


@dataclass(frozen=True, slots=True)
class Command:
    """A command that can be started. `program` is the file that is executed; `script` and `input_file` are what is kept of it."""

    arguments: tuple[str, ...]
    program: str
    script: str | None
    input_file: str | None
    cwd: str | None
    env: Mapping[str, str] | None

    @property
    def text(self) -> str:
        """The command line as a shell would take it; of one that is very long, the beginning."""
        return self.shown(list)

    def shown(self, redacted: Callable[[Sequence[str]], list[str]]) -> str:
        """Return the same of the arguments that `redacted` makes of these."""
        text = shlex.join(redacted(self.arguments))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [...]"

    def listed(self, redacted: Callable[[Sequence[str]], list[str]]) -> list[str]:
        """Return the arguments for a record; of very many or long ones, the first."""
        found: list[str] = []
        length = 0
        for argument in redacted(self.arguments):
            length += len(argument)
            if length > _LONGEST:
                return [*found, "[...]"]
            found.append(argument)
        return found


def assemble(
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    *,
    executable: Any = None,
    script: Any = None,
    input_file: Any = None,
    cwd: Any = None,
    env: Any = None,
) -> Command:
    """Return the command: executable, script, input file, options, arguments, in this order.

    Raises ProgramNotFound for an executable that is not there or not to be executed, UnreadableFile for a script or input file that
    cannot be read, ProcessNotStarted for a `cwd` that is no folder, InvalidRecord for all else that is no part of a command line.
    """
    work = _folder(cwd)
    environment = _environment(env)
    code, data = _readable("script", script), _readable("input_file", input_file)
    words = [_word("an argument", a) for a in arguments]
    flags = [word for name, value in options.items() for word in _option(name, value)]
    if executable is not None:
        first = _word("executable", executable)
    elif words:
        first = words.pop(0)
    elif code is not None or flags:
        first = os.environ.get("SHELL") or "/bin/sh"  # as the published client does
    else:
        raise InvalidRecord('add_process: what is to run? give the command, as in add_process("list", "ls", "-l"), or executable=')
    program = _program(first, environment)
    moves = work is not None and os.path.realpath(work) != os.path.realpath(os.getcwd())
    line = [program if "/" in first else first]
    line += [os.path.abspath(p) if moves else os.fspath(p) for p in (script, input_file) if p is not None]
    return Command((*line, *flags, *words), program, code, data, work, environment)


def _word(what: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise InvalidRecord(f"add_process: {what} must be text, a number or a path, not {value!r}"[:300])
    text = str(value)
    if "\0" in text or (what == "executable" and not text):
        raise InvalidRecord(f"add_process: {what} {text!r} is not possible on a command line"[:300])
    return text


def _option(name: str, value: Any) -> list[str]:
    if value is False or value is None:
        return []
    dashed = name.replace("_", "-")
    flag = f"-{dashed}" if len(dashed) == 1 else f"--{dashed}"
    return [flag] if value is True else [flag, _word(f"option {name}", value)]


def _folder(cwd: Any) -> str | None:
    if cwd is None:
        return None
    path = os.path.abspath(_word("cwd", cwd))
    if not os.path.isdir(path):
        raise ProcessNotStarted(errno.ENOTDIR, f"add_process: cwd {path} is not a folder: make it first")
    return path


def _environment(env: Any) -> Mapping[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping) or not all(isinstance(text, str) and "\0" not in text for pair in env.items() for text in pair):
        raise InvalidRecord(f"add_process: env must be a dictionary of names and texts, not {env!r}"[:300])
    return dict(env)


def _readable(what: str, path: Any) -> str | None:
    """Return the absolute path of a file that can be kept."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        raise InvalidRecord(f"add_process: {what} must be a path, not {path!r}"[:300])
    full = os.path.abspath(os.fspath(path))
    try:
        is_file = stat.S_ISREG(os.stat(full).st_mode)
    except (OSError, ValueError) as error:
        raise UnreadableFile(getattr(error, "errno", None) or errno.EINVAL, f"add_process: {what} {full} cannot be read: {error}") from None
    if not is_file or not os.access(full, os.R_OK):
        raise UnreadableFile(errno.EACCES, f"add_process: {what} {full} is no file that can be read")
    return full


def _program(name: str, env: Mapping[str, str] | None) -> str:
    """Return the absolute path of what is executed."""
    path = (env or {}).get("PATH", os.environ.get("PATH"))
    found = shutil.which(os.path.abspath(name) if "/" in name else name, path=path) or shutil.which(os.path.abspath(name))
    if found is not None:
        return os.path.abspath(found)
    if os.path.isfile(name):
        raise ProgramNotFound(
            errno.EACCES, f"add_process: {name} may not be executed: chmod +x it, or give its interpreter as executable= and it as script="
        )
    raise ProgramNotFound(errno.ENOENT, f"add_process: there is no executable {name!r}: give a path, or one that is found in PATH")
