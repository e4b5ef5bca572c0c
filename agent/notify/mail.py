"""Mail by SMTP or sendmail, with the standard library; it needs no DNS and no internet, only a mail server that takes it."""

from __future__ import annotations

import contextlib
import errno
import getpass
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from .channels import NotDelivered, failed
from .message import Message
from .program import Program
from .settings import Mail

_SENDMAIL_REFUSES = frozenset({64, 65, 67, 68, 77, 78})  # sysexits.h: usage, data, no user, no host, no permission, configuration
_PASSWORD = 4096


class MailCarrier:
    """Sends each message as one mail. Its Message-ID is made of the message's id and the spool's, and the same each time it is tried."""

    def __init__(self, settings: Mail, spool_id: str) -> None:
        self._settings, self._spool_id = settings, spool_id
        self._program = Program()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = self._was_cut = False

    def deliver(self, message: Message, begin: Callable[[], None]) -> str:
        mail = self.compose(message)
        if self._settings.sendmail is not None:
            return self._by_program(self._settings.sendmail, mail, begin)
        # the standard library's limit is for each wait; a server that dribbles would never reach it
        self._was_cut = False
        limit = threading.Timer(self._settings.timeout, self._cut)
        limit.daemon = True
        limit.start()
        try:
            return self._by_smtp(mail, begin)
        finally:
            limit.cancel()
            with self._lock:
                self._socket = None

    def compose(self, message: Message) -> EmailMessage:
        """Return the mail."""
        settings = self._settings
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self.sender
        mail["To"] = ", ".join(settings.to)
        mail["Subject"] = message.subject
        mail["Date"] = format_datetime(datetime.fromtimestamp(min(max(message.at, 0.0), 4e9), UTC))
        mail["Message-ID"] = f"<{message.id}@{self._spool_id}.simspool>"
        mail["Auto-Submitted"] = "auto-generated"  # no out-of-office answers
        mail["X-Simspool-Event"] = message.fields["event"]
        mail.set_content(message.body, cte="quoted-printable")
        return mail

    @property
    def sender(self) -> str:
        """The address that the mail is from."""
        return self._settings.sender or f"{getpass.getuser()}@{_hostname()}"

    # ------------------------------------------------------------------ SMTP

    def _by_smtp(self, mail: EmailMessage, begin: Callable[[], None]) -> str:
        settings, what = self._settings, f"{self._settings.host}:{self._settings.port}"
        doubtful = False
        # a name is given: the default would ask the DNS for this host's
        smtp = smtplib.SMTP(local_hostname=_hostname(), timeout=settings.timeout)
        try:
            try:
                self._connect(smtp)
                self._log_in(smtp)
                _expect(smtp.mail(self.sender), f"{what} refuses the sender {self.sender}")
                refused = self._name_recipients(smtp, what)
                doubtful = True
                begin()
                code, said = smtp.data(mail.as_bytes())
                if code != 250:
                    doubtful = False
                    raise NotDelivered(f"{what} refuses the mail: {_said(code, said)}", refused=code >= 500, everything=False)
                return refused
            finally:
                with contextlib.suppress(OSError):
                    smtp.close()  # no QUIT: its answer is not worth waiting for
        except smtplib.SMTPDataError as error:
            why = f"{what} refuses the mail: {_said(error.smtp_code, error.smtp_error)}"
            raise NotDelivered(why, refused=error.smtp_code >= 500, everything=False) from None
        except smtplib.SMTPResponseException as error:
            raise NotDelivered(f"{what}: {_said(error.smtp_code, error.smtp_error)}", refused=error.smtp_code >= 500) from None
        except smtplib.SMTPNotSupportedError as error:
            raise NotDelivered(f"{what}: {error}", refused=True) from None
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(f"{what}: {error.verify_message} (ca_file names your own authority)", refused=True) from None
        except (OSError, EOFError) as error:  # smtplib's own are OSErrors
            late = self._was_cut or isinstance(error, TimeoutError)
            why = f"no answer within {settings.timeout:g} s" if late else str(getattr(error, "strerror", None) or error)
            raise NotDelivered(f"{what}: {why}", doubtful=doubtful) from None

    def _connect(self, smtp: smtplib.SMTP) -> None:
        settings, what = self._settings, f"{self._settings.host}:{self._settings.port}"
        smtp._host = settings.host  # type: ignore[attr-defined]  # noqa: SLF001 - whose certificate STARTTLS verifies
        smtp.sock = socket.create_connection((settings.host, settings.port), settings.timeout)
        self._hold(smtp)
        if settings.tls == "implicit":
            smtp.sock = self._tls().wrap_socket(smtp.sock, server_hostname=settings.host)
            self._hold(smtp)
        _expect(smtp.getreply(), f"{what} takes no mail")
        if settings.tls == "starttls":
            smtp.starttls(context=self._tls())
            self._hold(smtp)
        smtp.ehlo_or_helo_if_needed()

    def _hold(self, smtp: smtplib.SMTP) -> None:
        """Remember the connection, so that another thread can cut it off."""
        with self._lock:
            self._socket = smtp.sock
            if self._stopped:
                raise InterruptedError(errno.EINTR, "the agent stops")

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._settings.ca_file)

    def _log_in(self, smtp: smtplib.SMTP) -> None:
        user, path = self._settings.user, self._settings.password_file
        if user is None or path is None:
            return
        try:
            with open(path, encoding="utf-8") as f:
                password = f.read(_PASSWORD).strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise NotDelivered(f"the password file {path} cannot be read: {error}", refused=True) from None
        smtp.login(user, password)

    def _name_recipients(self, smtp: smtplib.SMTP, what: str) -> str:
        """Name all recipients; return which are refused while others are not."""
        refused: dict[str, tuple[int, bytes]] = {}
        for address in self._settings.to:
            code, said = smtp.rcpt(address)
            if code not in {250, 251}:
                refused[address] = (code, said)
                if code == 421:
                    break
        text = "; ".join(f"{address}: {_said(*answer)}" for address, answer in refused.items())
        if len(refused) == len(self._settings.to) or any(code < 500 for code, _ in refused.values()):
            final = all(code >= 500 for code, _ in refused.values())
            raise NotDelivered(f"{what} refuses the recipients: {text}", refused=final)
        return f"refused: {text}" if refused else ""

    def _cut(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._was_cut = True
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------ sendmail

    def _by_program(self, path: str, mail: EmailMessage, begin: Callable[[], None]) -> str:
        argv = [path, "-i", "-f", self.sender, "--", *self._settings.to]
        begin()
        try:
            status, said = self._program.run(argv, mail.as_bytes(policy=SMTP.clone(linesep="\n")), {}, self._settings.timeout)
        except OSError as error:
            raise failed(error, path) from None
        if status is None:
            raise NotDelivered(f"{path} took over {self._settings.timeout:g} s and was killed", doubtful=True)
        if status != 0:
            why = f"{path}: exit status {status}: {said}".rstrip(": ")
            raise NotDelivered(why, refused=status in _SENDMAIL_REFUSES, doubtful=status < 0)
        return ""

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._cut()
        self._program.stop()


def _expect(answer: tuple[int, bytes], what: str) -> None:
    code, said = answer
    if not 200 <= code < 300:
        raise NotDelivered(f"{what}: {_said(code, said)}", refused=code >= 500)


def _said(code: int, text: bytes | str) -> str:
    return f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"


def _hostname() -> str:
    """Return this host's own name, as far as mail takes it."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in socket.gethostname())
    return name.strip("-.") or "localhost"
