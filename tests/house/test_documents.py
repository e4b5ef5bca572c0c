"""What the documents promise is there: every command, option, exit code and variable; no machine's paths."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from simspool.agent.cli import COMMANDS, main
from simspool.agent.exit_codes import ExitCode


def _commands() -> list[tuple[str, click.Command]]:
    context = click.Context(main)
    found = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", each) for sub, each in command.commands.items()]
    return found


def test_every_command_and_option_is_documented(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text()
    missing = []
    for name, command in _commands():
        if f"## agent {name}" not in text:
            missing.append(name)
        for parameter in command.params:
            missing += [f"{name} {o}" for o in parameter.opts if o.startswith("--") and o != "--help" and f"`{o}" not in text]
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_what_the_command_says_of_itself(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == COMMANDS[name][2]
    assert command.help


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_code_is_documented(root: Path, code: ExitCode) -> None:
    assert re.search(rf"^\| {code.value} \| ", (root / "docs" / "cli.md").read_text(), re.MULTILINE)


def test_links_in_documents_lead_somewhere(root: Path) -> None:
    broken = []
    for page in (root / "README.md", root / "CHANGELOG.md", *(root / "docs").glob("*.md"), root / "spool" / "FORMAT.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_no_machines_paths(root: Path) -> None:
    private = re.compile(r"/(?:work|root|home/[a-z]+)/[a-z]|\bissue #?\d+\b")
    places = ("agent", "sdk", "spool", "systemd", "docs", "examples", "benchmarks", ".ci", "README.md", "CHANGELOG.md", "run-tests")
    wrong = []
    for path in (p for place in places for p in [root / place, *(root / place).rglob("*")] if p.is_file() and p.suffix != ".pyc"):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if private.search(line):
                wrong.append(f"{path.relative_to(root)}:{number}")
    assert wrong == []
