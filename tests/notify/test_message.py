"""What people read, of one thing and of many, and that no name can steer a mail, a terminal or a program."""

from __future__ import annotations

import json
import math

from notices import NOW, RUN, ended, firing

from simspool.agent.notify.channels import fill
from simspool.agent.notify.mail import MailCarrier
from simspool.agent.notify.message import as_json, compose, digest_id
from simspool.agent.notify.settings import FIELDS, Mail, parse

EVIL = "x\r\nBcc: everyone@site\x1b[2J\u202e\ud800{alert}"


def _mail(**options: object) -> MailCarrier:
    (settings,) = parse({"mail": {"to": ["me@site"], **options}}, "")
    assert isinstance(settings, Mail)
    return MailCarrier(settings, "spool-id")


def test_a_firing_alert_is_told_with_all_that_helps() -> None:
    message = compose([firing()])
    assert message.subject == "[simspool] ALERT diverged: orbit (loss is 4.5)"
    for text in (
        "'diverged' fires in the run 'orbit'", "loss: average over 5 s is above 3", "loss is 4.5", RUN, "/a/b", "node7", "running", "4.5",
        "the run is aborted for it", f"agent alerts {RUN}", "UTC",
    ):  # fmt: skip
        assert text in message.body
    assert "late" not in message.body
    assert "Perhaps" not in message.body
    assert set(message.fields) == set(FIELDS)


def test_what_was_judged_afterwards_says_so() -> None:
    message = compose([firing(recorded=NOW + 86400)])
    assert "late, no agent was there" in message.body
    assert message.fields["time"] == compose([firing()]).fields["time"]


def test_a_message_that_may_be_a_second_copy_says_so_and_has_the_same_id() -> None:
    first, second = compose([firing()]), compose([firing()], repeated=True)
    assert first.id == second.id
    assert "Perhaps you have this already" in second.body
    assert _mail().compose(first)["Message-ID"] == _mail().compose(second)["Message-ID"] == f"<{0:032x}@spool-id.simspool>"


def test_an_end_is_told_with_status_and_reason() -> None:
    message = compose([ended()])
    assert message.subject == "[simspool] FAILED: orbit (exit code 3)"
    assert f"agent show {RUN}" in message.body


def test_a_digest_has_a_line_for_each_and_an_id_of_its_parts() -> None:
    notices = [firing(n) for n in range(30)]
    message = compose(notices)
    assert message.subject == "[simspool] 30 notifications, 30 of alerts that fire"
    assert message.body.count("ALERT diverged: orbit") == 30
    assert message.id == digest_id(list(reversed(notices)))
    assert len(message.records) == 30
    assert (message.fields["alert"], message.fields["run"]) == ("30 notifications", "1 run")


def test_names_steer_nothing() -> None:
    message = compose([firing(run=EVIL, alert=EVIL, reason=EVIL)])
    assert message.subject.isprintable()
    assert all(value.isprintable() for value in message.fields.values())
    assert all(line.isprintable() for line in message.body.split("\n"))
    mail = _mail().compose(message)
    raw = mail.as_bytes()
    assert "Bcc" not in mail
    assert b"\nBcc" not in raw
    assert b"\x1b" not in raw
    assert as_json(message.records[0]).isprintable()


def test_a_field_does_not_become_an_option_and_is_not_filled_in_twice() -> None:
    message = compose([firing(run="--shutdown")])
    assert fill("{run}", message) == " --shutdown"
    assert fill("--title={run}", message) == "--title=--shutdown"
    assert fill("{alert}: {", compose([firing(alert="{run}")])) == "{run}: {"


def test_json_is_strict_whatever_the_inputs_are() -> None:
    text = as_json(compose([firing(inputs={"value": math.nan, "values": [math.inf, -math.inf]})]).records[0])
    assert json.loads(text)["inputs"] == {"value": "NaN", "values": ["Infinity", "-Infinity"]}


def test_odd_decisions_are_told_all_the_same() -> None:
    for body in ({"at": math.nan}, {"at": "x"}, {"at": 1e300}, {"stream": 3, "inputs": None, "reason": None}, {"alert": "never defined"}):
        assert compose([firing(**body)]).subject.startswith("[simspool] ALERT")
