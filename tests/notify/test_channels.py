"""Each way to tell people, with the real thing at its end: files, programs, a mail server."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mail_sink import MailSink
from notices import RUN, firing

from simspool.agent.notify.channels import Carrier, NotDelivered, carrier_of
from simspool.agent.notify.message import compose
from simspool.agent.notify.settings import parse


def _carrier(said: list[str] | None = None, **table: Any) -> Carrier:
    (settings,) = parse(table, "")
    return carrier_of(settings, (said if said is not None else []).append, "spool-id")


def _refusal(carrier: Carrier, number: int = 0) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        carrier.deliver(compose([firing(number)]), lambda: None)
    return caught.value


def _tell(carrier: Carrier, number: int = 0, *, repeated: bool = False) -> tuple[str, int]:
    begun = []
    said = carrier.deliver(compose([firing(number)], repeated=repeated), lambda: begun.append(1))
    return said, len(begun)


def test_the_terminal_has_a_line() -> None:
    said: list[str] = []
    assert _tell(_carrier(said, terminal=True)) == ("", 1)
    assert said == [f"ALERT diverged: orbit (loss is 4.5) [{RUN}]"]


def test_a_file_has_a_line_of_json_each_and_a_doubtful_one_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    carrier = _carrier(file=str(path))
    assert _tell(carrier, 1) == ("", 1)
    assert _tell(carrier, 2) == ("", 1)
    assert _tell(carrier, 2, repeated=True) == ("it was there already", 0)
    assert _tell(carrier, 3, repeated=True) == ("", 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [int(line["id"], 16) for line in lines] == [1, 2, 3]
    assert lines[0]["inputs"] == {"value": 4.5, "count": 3}


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "missing":
        path = tmp_path / "no" / "x"
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    error = _refusal(_carrier(file=str(path)))
    assert (error.refused, error.doubtful) == (True, False)
    assert str(path) in str(error)


def test_a_full_disk_is_no_refusal() -> None:
    error = _refusal(_carrier(file="/dev/full"))
    assert "no regular file" in str(error)


def test_a_command_gets_arguments_environment_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_TOKEN", "secret")
    program = "import json, os, sys; json.dump([sys.argv[2:], dict(os.environ), json.load(sys.stdin)], open(sys.argv[1], 'w'))"
    out = tmp_path / "out"
    assert _tell(_carrier(command=[sys.executable, "-c", program, str(out), "{run}: {alert}", "; rm -rf / $(x)"])) == ("", 1)
    argv, environment, given = json.loads(out.read_text())
    assert argv == ["orbit: diverged", "; rm -rf / $(x)"]
    assert environment["SIMSPOOL_NOTIFY_ALERT"] == "diverged"
    assert environment["SIMSPOOL_NOTIFY_RUN_ID"] == RUN
    assert "SIMSPOOL_TOKEN" not in environment
    assert given["reason"] == "loss is 4.5"


def test_a_command_that_fails_is_told_with_the_end_of_what_it_said() -> None:
    program = "import sys; sys.stdout.write('x' * 10_000_000 + 'the end'); sys.exit(7)"
    error = _refusal(_carrier(command=[sys.executable, "-c", program]))
    assert "exit status 7" in str(error)
    assert len(str(error)) <= 1000
    assert (error.refused, error.everything, error.doubtful) == (False, False, False)


def test_a_command_that_is_not_there_is_refused() -> None:
    error = _refusal(_carrier(command=["no-such-program"]))
    assert (error.refused, error.everything) == (True, True)
    assert "no-such-program" in str(error)


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    error = _refusal(_carrier(command={"run": ["sh", "-c", f"sleep 1000 & echo $! > {path}; wait"], "timeout": 0.5}))
    assert error.doubtful
    assert "took over 0.5 s" in str(error)
    pid = int(path.read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_whose_child_goes_on_is_not_waited_for() -> None:
    assert _tell(_carrier(command=["sh", "-c", "sleep 20 & exit 0"])) == ("", 1)


def test_a_command_that_runs_is_cut_off_by_a_stop(tmp_path: Path) -> None:
    carrier, path = _carrier(command=["sh", "-c", f"echo > {tmp_path}/began; sleep 1000"]), tmp_path / "began"

    def stop() -> None:
        while not path.exists():
            time.sleep(0.02)
        carrier.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    assert _refusal(carrier).doubtful
    thread.join()
    assert not _refusal(carrier).doubtful


# ---------------------------------------------------------------------- mail


def test_a_mail_arrives_as_it_was_meant(sink: MailSink) -> None:
    assert _tell(_carrier(mail={"to": ["a@site", "b@site"], "from": "agent@node", "smtp": sink.address})) == ("", 1)
    (mail,) = sink.mails
    assert (mail.sender, mail.to) == ("agent@node", ["a@site", "b@site"])
    assert mail.subject == "[simspool] ALERT diverged: orbit (loss is 4.5)"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert "the run is aborted for it" in mail.text


def test_names_in_any_script_arrive(sink: MailSink) -> None:
    carrier = _carrier(mail={"to": ["a@site"], "smtp": sink.address})
    carrier.deliver(compose([firing(run="Bahn Ω 軌道", reason="größer als π")]), lambda: None)
    assert sink.mails[0].subject == "[simspool] ALERT diverged: Bahn Ω 軌道 (größer als π)"
    assert "größer als π" in sink.mails[0].text


def test_no_server_is_no_refusal(sink: MailSink) -> None:
    sink.stop()
    error = _refusal(_carrier(mail={"to": ["a@site"], "smtp": sink.address}))
    assert (error.refused, error.doubtful) == (False, False)
    assert "Connection refused" in str(error)


def test_a_refused_mail_is_only_that_mail(sink: MailSink) -> None:
    sink.answer_data = lambda: "554 this looks like spam"
    error = _refusal(_carrier(mail={"to": ["a@site"], "smtp": sink.address}))
    assert (error.refused, error.everything, error.doubtful) == (True, False, False)
    assert "554 this looks like spam" in str(error)


def test_a_busy_server_is_tried_again_soon(sink: MailSink) -> None:
    sink.answer_data = lambda: "451 come back later"
    assert not _refusal(_carrier(mail={"to": ["a@site"], "smtp": sink.address})).refused
    sink.answer_data, sink.answer_rcpt = (lambda: None), lambda _: "450 greylisted"
    assert not _refusal(_carrier(mail={"to": ["a@site"], "smtp": sink.address})).refused


def test_some_unknown_recipients_do_not_keep_it_from_the_others(sink: MailSink) -> None:
    sink.answer_rcpt = lambda address: "550 who is that?" if address.startswith("gone") else None
    said, _ = _tell(_carrier(mail={"to": ["a@site", "gone@site"], "smtp": sink.address}))
    assert said == "refused: gone@site: 550 who is that?"
    assert sink.mails[0].to == ["a@site"]
    error = _refusal(_carrier(mail={"to": ["gone@site"], "smtp": sink.address}))
    assert (error.refused, error.everything) == (True, True)


def test_a_server_that_hangs_after_the_mail_leaves_a_doubt(sink: MailSink) -> None:
    release = threading.Event()
    sink.taken = lambda _: release.wait(60)  # type: ignore[assignment, return-value]
    error = _refusal(_carrier(mail={"to": ["a@site"], "smtp": sink.address, "timeout": 0.5}))
    release.set()
    assert error.doubtful
    assert "no answer within 0.5 s" in str(error)


def test_a_server_that_never_greets_is_given_up() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        error = _refusal(_carrier(mail={"to": ["a@site"], "smtp": f"127.0.0.1:{server.getsockname()[1]}", "timeout": 0.3}))
    assert (error.refused, error.doubtful) == (False, False)


def test_a_server_that_dribbles_for_ever_is_cut_off() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:

        def dribble() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"220-still thinking\r\n")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=dribble)
        thread.start()
        error = _refusal(_carrier(mail={"to": ["a@site"], "smtp": f"127.0.0.1:{server.getsockname()[1]}", "timeout": 0.5}))
        thread.join()
    assert "no answer within 0.5 s" in str(error)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl: mail over TLS was not tried (apt-get install openssl)")
def test_tls_and_a_password(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    with MailSink(tls=context, password="open sesame") as sink:
        options = {"to": ["a@site"], "smtp": f"localhost:{sink.port}", "tls": "starttls", "user": "me", "password_file": str(password)}
        assert _tell(_carrier(mail={**options, "ca_file": str(certificate)})) == ("", 1)
        assert len(sink.mails) == 1
        strange = _refusal(_carrier(mail=options))
        assert strange.refused
        assert "ca_file" in str(strange)
        password.write_text("wrong")
        wrong = _refusal(_carrier(mail={**options, "ca_file": str(certificate)}))
        assert wrong.refused
        assert "535" in str(wrong)
        assert "wrong" not in str(wrong)


SENDMAIL = """#!/bin/sh
test -e {folder}/refuse && {{ echo no such user; exit 67; }}
printf '%s\\n' "$@" > {folder}/arguments
cat > {folder}/mail
"""


def test_sendmail_gets_the_recipients_and_the_mail(tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(SENDMAIL.format(folder=tmp_path))
    program.chmod(0o755)
    carrier = _carrier(mail={"to": ["a@site"], "from": "me@node", "sendmail": str(program)})
    assert _tell(carrier) == ("", 1)
    assert (tmp_path / "arguments").read_text().split() == ["-i", "-f", "me@node", "--", "a@site"]
    assert "Subject: [simspool] ALERT diverged" in (tmp_path / "mail").read_text()
    (tmp_path / "refuse").touch()
    error = _refusal(carrier)
    assert error.refused
    assert "no such user" in str(error)
