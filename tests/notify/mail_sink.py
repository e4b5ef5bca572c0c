"""A real SMTP server on this host that keeps what it takes, and misbehaves as a test asks for it."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any, Self, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Mail:
    """What was taken: envelope and message."""

    def __init__(self, envelope: Envelope) -> None:
        self.sender, self.to = envelope.mail_from, list(envelope.rcpt_tos)
        self.raw = cast("bytes", envelope.content)
        self.message = cast("EmailMessage", email.message_from_bytes(self.raw, policy=email.policy.default))
        self.id, self.subject = str(self.message["Message-ID"]), str(self.message["Subject"])

    @property
    def text(self) -> str:
        return str(self.message.get_content())


class MailSink:
    """Listens on a port of its own, the same after each `start`.

    `answer_rcpt(address)` and `answer_data()` return a reply other than 250, or nothing; `taken(mail)` is called when a mail is there and
    the reply has not gone out.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, password: str | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.mails: list[Mail] = []
        self.answer_rcpt: Callable[[str], str | None] = lambda _: None
        self.answer_data: Callable[[], str | None] = lambda: None
        self.taken: Callable[[Mail], None] = lambda _: None
        self._tls, self._password = tls, password
        self._controller: Controller | None = None
        self._news = threading.Condition()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"tls_context": self._tls, "require_starttls": True}
        if self._password is not None:
            options |= {"authenticator": self._authenticate, "auth_required": True}
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **options)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data.password.decode() == self._password
        return AuthResult(success=good, handled=False)

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        answer = self.answer_rcpt(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        answer = self.answer_data()
        if answer is not None:
            return answer
        mail = Mail(envelope)
        self.taken(mail)
        with self._news:
            self.mails.append(mail)
            self._news.notify_all()
        return "250 taken"

    def wait_for(self, count: int, seconds: float = 60.0) -> list[Mail]:
        """Wait until so many mails were taken."""
        until = time.monotonic() + seconds
        with self._news:
            while len(self.mails) < count:
                left = until - time.monotonic()
                assert left > 0, f"{len(self.mails)} mails after {seconds} s, not {count}: {[m.subject for m in self.mails]}"
                self._news.wait(left)
        return list(self.mails)
