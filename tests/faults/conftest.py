"""Fault tests load the campaigns beside them, so that a command and its test are one program."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import server, spool  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # the modules of the campaign name each other


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"faults_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kill_campaign() -> ModuleType:
    return _load("kill_campaign")


@pytest.fixture
def powercut_campaign() -> ModuleType:
    return _load("powercut_campaign")


@pytest.fixture
def abort_campaign() -> ModuleType:
    return _load("abort_campaign")
