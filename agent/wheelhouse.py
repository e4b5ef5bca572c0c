"""A folder of wheels from which simspool can be installed where there is no network: `agent wheelhouse`.

simspool's own wheel is made from what is installed, file by file as its RECORD lists them: no index is asked for it, which may not have it,
or have another project of that name. The dependencies' wheels are what pip finds; by default in the versions that run here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import atomic

NAME = "simspool"
_LEFT_OUT = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})  # of an installation, not of a wheel
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same files make the same wheel
_PATIENCE = 3600.0  # s


@dataclass(frozen=True, slots=True)
class For:
    """What the wheels are for: this interpreter and machine, unless `python` ("3.12") or `platforms` (pip's names) say others."""

    python: str | None = None
    platforms: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is this interpreter and machine."""
        return self.python is None and not self.platforms


def own_wheel(folder: str) -> str:
    """Make simspool's wheel in a folder from what is installed; returns its path.

    Raises CommandError where a file is not as it was installed, and for an editable installation, which has no files of its own: a wheel of
    this version that lies in the folder already is taken then.
    """
    installed = _installed()
    info = f"{NAME}-{installed.version}.dist-info"
    name = f"{NAME}-{installed.version}-py3-none-any.whl"
    path = os.path.join(folder, name)
    files = [f for f in installed.files or [] if f.parts[0] in {NAME, info} and f.suffix != ".pyc" and f.name not in _LEFT_OUT]
    if not any(f.parts[0] == NAME for f in files) or not any(f.name == "WHEEL" for f in files):
        if os.path.exists(path):
            return path
        instead = f"`{sys.executable} -m pip wheel --no-deps --wheel-dir {folder} SOURCE`, then this command again"
        raise CommandError(ExitCode.ERROR, f"simspool is installed from a source folder, and not as a wheel: {instead}")
    data = io.BytesIO()
    rows: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            with open(str(file.locate()), "rb") as opened:
                content = opened.read()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            if file.hash is not None and (file.hash.mode, file.hash.value) != ("sha256", digest):
                raise CommandError(ExitCode.ERROR, f"{file.locate()} is not as it was installed: install simspool again first")
            _add(archive, file.as_posix(), content)
            rows.append((file.as_posix(), f"sha256={digest}", str(len(content))))
        rows.append((f"{info}/RECORD", "", ""))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        _add(archive, f"{info}/RECORD", text.getvalue().encode())
    atomic.write_file(path, data.getvalue(), 0o644)
    return path


def _installed() -> importlib.metadata.Distribution:
    """Return the installation; a source folder that is the working folder may have metadata of the same name."""
    found = list(importlib.metadata.distributions(name=NAME))
    if not found:
        raise CommandError(ExitCode.ERROR, "simspool is not installed, only found: `python -m pip install simspool`")
    return next((one for one in found if any(f.name == "WHEEL" for f in one.files or [])), found[0])


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o100644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def fetch(folder: str, wheel: str, wanted: For) -> None:
    """Have pip put the wheels of all dependencies into the folder. Raises CommandError with what pip says."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--find-links", folder]
    if wanted.is_here:
        with tempfile.TemporaryDirectory() as scratch:
            pins = os.path.join(scratch, "constraints.txt")
            with open(pins, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in _pins())
            _pip(["wheel", *options, "--prefer-binary", "--wheel-dir", folder, "--constraint", pins, wheel])
        return
    if wanted.python is not None:
        options += ["--python-version", wanted.python]
    for platform in wanted.platforms:
        options += ["--platform", platform]
    _pip(["download", *options, "--only-binary", ":all:", "--dest", folder, wheel])


def _pins() -> Iterator[str]:
    """Yield the versions that run here: what was tried is what goes."""
    for one in importlib.metadata.distributions():
        name, version = one.metadata["Name"], one.version
        if name and name.lower() != NAME and "+" not in version:  # a local version is on no index
            yield f"{name}=={version}"


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(ExitCode.ERROR, f"pip did not do it: {error}") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in said):
            raise CommandError(ExitCode.ERROR, f"there is no pip in this environment: `{sys.executable} -m ensurepip` puts it there")
        why = next((line for line in said if line.startswith("ERROR")), said[-1] if said else f"status {done.returncode}")
        raise CommandError(ExitCode.ERROR, f"pip could not find everything ({why.removeprefix('ERROR: ')})")


def finish(folder: str, wheel: str, wanted: For, *, sdk_only: bool) -> tuple[str, list[str]]:
    """Write SHA256SUMS and README.txt; returns the command that installs, and the wheels' names."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".whl"))
    sums = "".join(f"{_digest(os.path.join(folder, name))}  {name}\n" for name in names)
    atomic.write_file(os.path.join(folder, "SHA256SUMS"), sums.encode(), 0o644)
    version = os.path.basename(wheel).split("-")[1]
    bare = f"python -m pip install --no-index --no-deps {os.path.basename(wheel)}"
    whole = f"python -m pip install --no-index --find-links . {NAME}=={version}"
    target = "this kind of machine" if not wanted.platforms else ", ".join(wanted.platforms)
    python = wanted.python or ".".join(map(str, sys.version_info[:2]))
    lines = [f"simspool {version}, to be installed without a network. In this folder:", "", "    sha256sum --check --quiet SHA256SUMS"]
    if not sdk_only:
        lines += [f"    {whole}", "", f"This is for Python {python} on {target}."]
        lines += ["What records, and nothing else, for any Python from 3.11 up:", ""]
    lines += [f"    {bare}", "", "Use the Python of a virtual environment: `python3 -m venv ENV`, then ENV/bin/python in place of python."]
    atomic.write_file(os.path.join(folder, "README.txt"), "\n".join([*lines, ""]).encode(), 0o644)
    return (bare if sdk_only else whole), names


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
