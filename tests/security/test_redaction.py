"""A36: what is captured without being told has no secrets in it, and what a script tells is not touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.sdk import Run
from simspool.sdk.config import load_config
from simspool.sdk.errors import ConfigError
from simspool.sdk.redaction import PLAIN, REDACTED, Redactor
from simspool.spool import Spool, Tail
from simspool.spool.frames import Record

SECRET = "canary-5e1f77d2"
SHAPES = (
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLWhlcmU", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 12,
    "glpat-a1B2c3D4e5F6g7H8i9J0", "sk-proj-" + "a1B2" * 6, "sk-ant-" + "a1B2" * 8, "xoxb-12345678-abcdefgh", "hf_" + "aB" * 17,
    "AIza" + "a" * 35, "npm_" + "a" * 36, "sk_live_" + "a1" * 12,
)  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ["--token", SECRET], [f"--token={SECRET}"], ["--api-key", SECRET], ["--apiKey", SECRET], ["--password", f"-{SECRET}"],
        ["-u", f"me:{SECRET}"],
        [f"WANDB_API_KEY={SECRET}", "run"], [f"+trainer.auth_token={SECRET}"], [f'{{"password": "{SECRET}"}}'],
        [f"-Dclient.secret={SECRET}"],
        ["-H", f"Authorization: Bearer {SECRET}"], [f"https://me:{SECRET}@host/x"], [f"git+https://{SECRET}@github.com/x"],
        [f"postgres://u:p@{SECRET}@host/db"], [f"https://h/x?a=1&token={SECRET}&b=2"], [f"https://h/x?X-Amz-Signature={SECRET}"],
        ["bash", "-c", f"export DB_PASSWORD='{SECRET} and more'; run --secret {SECRET}"], [f"--db-password={SECRET}"],
        [f"/p:Password={SECRET}"],
        [f"AWS_SECRET_ACCESS_KEY={SECRET}"], [f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----"],
        *([shape] for shape in SHAPES), *([f"x={shape},"] for shape in SHAPES),
    ],
)  # fmt: skip
def test_secrets_of_command_lines(argv: list[str]) -> None:
    kept = PLAIN.arguments(["solver", *argv, "--steps", "10"])
    assert len(kept) == len(argv) + 3
    assert kept[0] == "solver"
    assert kept[-2:] == ["--steps", "10"]
    assert REDACTED in str(kept)
    for secret in (SECRET, *SHAPES):
        assert secret not in str(kept)


@pytest.mark.parametrize(
    "argv",
    [
        ["--max-tokens", "512"], ["--tokenizer", "bpe"], ["--token-file", "/run/token"], ["--sort-key", "loss"], ["--seed", "42"],
        ["--lr", "1e-3"],
        ["--author", "me"], ["--monkey", "banana"], ["--passes", "3"], ["ssh://git@host/x"], ["https://host/path?x=1"], ["-n", "4"],
        ["--token", "3"],
        ["input.nml"], ["--keyframe", "7"], ["/data/secrets.d/run"], ["a" * 40], ["time=3", "key_count=4"],
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(argv: list[str]) -> None:
    assert PLAIN.arguments(argv) == argv


def test_variables() -> None:
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "SLURM_JWT_TOKEN", "SOLVER_KEY", "HTTP_COOKIE"):
        assert PLAIN.value(name, SECRET) == REDACTED
    for name in ("PWD", "OLDPWD", "HOME", "SLURM_JOB_ID", "OMP_NUM_THREADS", "SSH_AUTH_SOCK", "KEYBOARD"):
        assert PLAIN.value(name, "/some/where") == "/some/where"
    assert PLAIN.value("HTTPS_PROXY", f"http://me:{SECRET}@proxy") == f"http://{REDACTED}@proxy"


def test_settings() -> None:
    own = Redactor.of({"names": ["project_code"], "prefixes": ["ACME-"]})
    assert own.arguments(["--project-code", "x1"]) == ["--project-code", REDACTED]
    assert own.text("see ACME-1234567890, please") == f"see {REDACTED}, please"
    long = "x" * 101
    for table in ({"nmaes": []}, {"names": "x"}, {"names": ["--"]}, {"prefixes": ["a"]}, {"prefixes": [long]}, {"names": ["ab"] * 101}):
        with pytest.raises(ConfigError, match="redact"):
            Redactor.of(table)


@given(st.text(max_size=300), st.lists(st.text(max_size=40), max_size=6))
@settings(deadline=None, max_examples=300)
def test_any_text_keeps_its_form(text: str, argv: list[str]) -> None:
    """Never raises, keeps the number of arguments, is stable, and what is kept has nothing left to take out."""
    kept = PLAIN.text(text)
    assert PLAIN.text(kept) == kept
    assert len(PLAIN.arguments(argv)) == len(argv)
    spans = PLAIN.find(text)
    assert all(0 <= s.start < s.end <= len(text) for s in spans)
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize(
    "piece",
    ["eyJ", "a", "--token ", "token=", "http://", "-----BEGIN PRIVATE KEY-----", "a:", "x@", "http://a@", "sk-", "\"'", " ", "-",
     "password:    ", "eyJaaaaaaaaa.", "http://a:b", "A=", "token='", '="', "://", "ghp_"],
)  # fmt: skip
def test_no_text_is_slow(piece: str) -> None:
    """What is quadratic would take hours here."""
    PLAIN.text(piece * (1_000_000 // len(piece)))


# ---------------------------------------------------------------------- what is captured


def bodies(spool: Spool) -> str:
    """Return all that is recorded in a spool, as text."""
    found: list[Any] = []
    for run in spool.run_ids():
        folder = spool.run(run)
        for writer in folder.writer_ids():
            with Tail(folder.writer(writer), run) as tail:
                found += [item.body for chunk in tail.read(dead=True) for item in chunk.items if isinstance(item, Record)]
    return json.dumps(found)


def test_a_scripts_processes_and_variables(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DIR", spool.path)
    monkeypatch.setenv("SOLVER_TOKEN", SECRET)
    monkeypatch.setenv("SOLVER_MODE", "fast")
    monkeypatch.chdir(tmp_path)
    Path("simspool.toml").write_text('[redact]\nnames = ["project_code"]\n')
    with Run() as run:
        assert run.init("captured", record_shell_vars={"SOLVER_*"}, metadata={"told": SECRET + "-told"})
        assert run.add_process("solver", "/bin/true", "--token", SECRET)
        assert run.add_process("other", "/bin/true", api_key=SECRET, project_code=SECRET, steps=4)
        run.executor.wait_for_completion()
        run.log_event(f"told by the script: {SECRET}-told")
    text = bodies(spool)
    assert f"{SECRET}-told" in text  # what is told is data
    assert SECRET not in text.replace(f"{SECRET}-told", "")
    assert '"shell.SOLVER_MODE": "fast"' in text
    assert "--steps" in text
    assert text.count(REDACTED) >= 3


def test_a_traceback(spool: Spool, tmp_path: Path) -> None:
    program = (
        "from simspool.sdk import Run\nwith Run() as run:\n    run.init('x')\n"
        "    raise RuntimeError('cannot open https://me:' + 'SECRET' + '@host/?token=' + 'SECRET')\n"
    ).replace("'SECRET'", f"'{SECRET[:6]}' + '{SECRET[6:]}'")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={**os.environ, "SIMSPOOL_DIR": spool.path},
    )  # fmt: skip
    assert done.returncode == 1
    assert SECRET in done.stderr  # the script's own output is its own
    text = bodies(spool)
    assert "cannot open https://" in text
    assert SECRET not in text


def test_exec(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "simspool.toml").write_text('[redact]\nprefixes = ["ACME-"]\n')
    command = ["sh", "-c", "exit 0", "x", "--token", SECRET, f"--url=https://me:{SECRET}@host", f"DB_PASSWORD={SECRET}", f"ACME-{SECRET}"]
    done = subprocess.run(
        [sys.executable, "-m", "simspool.agent", "exec", "--json", "--spool", spool.path, "--", *command], capture_output=True, text=True,
        timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SECRET not in bodies(spool) + done.stdout + done.stderr
    assert bodies(spool).count(REDACTED) >= 8


def test_a_broken_table_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("simspool.toml").write_text("[redact]\nnames = 3\n")
    with pytest.raises(ConfigError, match=r"\[redact\] names"):
        load_config()
