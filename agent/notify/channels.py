"""How a message gets to people: the terminal, a file, a command. (Mail: `mail.py`.)"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Protocol

from .message import Message, as_json, plain
from .program import Program
from .settings import PLACEHOLDER, Channel, Command, File, Mail, Terminal

_LOOK_BACK = 4 << 20  # bytes at the end of a file
_FOR_GOOD = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO, errno.ENOEXEC, errno.ELOOP,
})  # fmt: skip


class NotDelivered(Exception):
    """Raised when a message was not delivered. `refused`: it would not help to try again soon. `everything`: nor for any other message.

    `doubtful`: it may have been delivered all the same.
    """

    def __init__(self, why: str, *, refused: bool = False, everything: bool = True, doubtful: bool = False) -> None:
        super().__init__(plain(why, 1000))
        self.refused, self.everything, self.doubtful = refused, everything, doubtful


class Carrier(Protocol):
    """One channel's way to deliver."""

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        """Deliver a message; return what there is to say of it, often nothing. Calls `begin` right before it may have an effect.

        Raises NotDelivered.
        """

    def stop(self) -> None:
        """Cut off what is being delivered, from another thread."""


def failed(error: OSError, what: str) -> NotDelivered:
    """Return what an error of the system means for a delivery."""
    return NotDelivered(f"{what}: {error.strerror or error}", refused=error.errno in _FOR_GOOD)


class TerminalCarrier:
    """A line where the agent's own messages go."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        begin()
        self._report(message.subject.removeprefix("[simspool] ") + (f" [{message.fields['run_id']}]" if message.fields["run_id"] else ""))
        return ""

    def stop(self) -> None:
        """A line takes no time."""


class FileCarrier:
    """A line of JSON for each notice, by one write of all of them at the file's end."""

    def __init__(self, settings: File) -> None:
        self._path = settings.path

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        data = "".join(as_json(record) + "\n" for record in message.records).encode()
        try:
            # O_NONBLOCK: a pipe that nobody reads is an error, no wait
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o640)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise NotDelivered(f"{self._path} is no regular file", refused=True)
                if message.repeated and self._has(message):
                    return "it was there already"
                begin()
                written = os.write(handle, data)
                if written < len(data):
                    os.write(handle, b"\n")  # what is torn is a line of its own, and no JSON
                    raise NotDelivered(f"{self._path}: only a part of the line could be written: is the disk full?")
            finally:
                os.close(handle)
        except OSError as error:
            raise failed(error, self._path) from None
        return ""

    def _has(self, message: Message) -> bool:
        with open(self._path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _LOOK_BACK))
            tail = f.read()
        return all(as_json({"id": record["id"]})[:-1].encode() in tail for record in message.records)

    def stop(self) -> None:
        """A write to a file cannot be cut off."""


class CommandCarrier:
    """A program: fields in its arguments and environment, JSON on its stdin; exit status 0 says that it is done."""

    def __init__(self, settings: Command) -> None:
        self._settings, self._program = settings, Program()

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        argv = [self._settings.run[0], *(fill(argument, message) for argument in self._settings.run[1:])]
        environment = {f"SIMSPOOL_NOTIFY_{key.upper()}": value for key, value in message.fields.items()}
        given = "".join(as_json(record) + "\n" for record in message.records).encode()
        begin()
        try:
            status, said = self._program.run(argv, given, environment, self._settings.timeout)
        except OSError as error:
            raise failed(error, argv[0]) from None
        if status is None:
            raise NotDelivered(f"{argv[0]} took over {self._settings.timeout:g} s and was killed: {said}".rstrip(": "), doubtful=True)
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
            raise NotDelivered(f"{argv[0]}: {how}: {said}".rstrip(": "), everything=False, doubtful=status < 0)
        return ""

    def stop(self) -> None:
        self._program.stop()


def fill(argument: str, message: Message) -> str:
    """Return an argument with its fields filled in. What comes from a run does not become an option of the program."""
    text = PLACEHOLDER.sub(lambda match: message.fields[match[1]], argument)
    return f" {text}" if text.startswith("-") and not argument.startswith("-") else text


def carrier_of(settings: Channel, report: Callable[[str], None], spool_id: str) -> Carrier:
    """Return what delivers for a channel."""
    if isinstance(settings, Terminal):
        return TerminalCarrier(report)
    if isinstance(settings, File):
        return FileCarrier(settings)
    if isinstance(settings, Command):
        return CommandCarrier(settings)
    assert isinstance(settings, Mail)
    from .mail import MailCarrier  # smtplib and email, only where mail is wanted

    return MailCarrier(settings, spool_id)
