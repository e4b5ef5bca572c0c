"""Names, paths and points as MLflow takes them, without a server."""

from __future__ import annotations

import posixpath
import re

from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.targets.mlflow_state import wanted
from simspool.agent.targets.mlflow_words import Metric, Seen, name_there, own_path, path_there, resource_here, resource_there
from simspool.spool import Kind, runstate

_NAMES = st.one_of(st.text(max_size=400), st.text("ab/.#: \n\0é\ud800", max_size=300))


def is_taken(name: str) -> bool:
    """MLflow's own rule for keys of metrics, params and tags (mlflow/utils/validation.py)."""
    norm = posixpath.normpath(name)
    return bool(
        re.fullmatch(r"[/\w.\- :]*", name) and norm == name and norm != "." and not norm.startswith(("..", "/")) and len(name) <= 250
    )


@given(_NAMES)
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    there = name_there(name)
    assert is_taken(there)
    assert is_taken("simspool.name." + there)
    assert there == name or not is_taken(name) or len(name) > 230


@given(_NAMES, _NAMES)
def test_two_names_never_become_one(one: str, other: str) -> None:
    assert (name_there(one) == name_there(other)) == (one == other) or name_there(one) in {one, other} or name_there(other) in {one, other}
    if one != other and not (is_taken(one) and is_taken(other)):
        assert name_there(one) != name_there(other)


@given(st.sampled_from(["output", "input", "code", "", "simspool", "..", "a/b"]), _NAMES)
def test_no_file_leaves_its_run_or_gets_among_our_own(category: str, name: str) -> None:
    for path in (path_there(category, name), own_path("writer", 7, name)):
        parts = path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert not re.search(r"[#?%\\\0\n\ud800]", path)
        assert len(path.encode()) <= 1000
        assert all(len(part.encode()) <= 160 for part in parts)
    assert not path_there(category, name).startswith("simspool/")


def test_resources_are_where_mlflow_shows_them() -> None:
    names = {
        "resources/host.cpu.percentage": "system/cpu_utilization_percentage",
        "resources/gpu.utilisation.percent.3": "system/gpu_3_utilization_percentage",
        "resources/gpu.utilisation.memory.0": "system/gpu_0_memory_usage_percentage",
        "resources/gpu.power.12": "system/gpu_12_power_usage_watts",
        "resources/cpu.usage.memory": "system/cpu.usage.memory",
        "resources/gpu.memory.used.0": "system/gpu.memory.used.0",
    }
    for ours, theirs in names.items():
        assert resource_there(ours) == theirs
        assert resource_here(theirs) == ours


def test_equal_points_of_other_records_merge_and_a_repeated_record_does_not() -> None:
    seen = Seen()
    point = Metric("loss", 1.0, 5, 3, 7, 0)
    assert not seen.merges("run", point, 1)
    assert not seen.merges("run", point, 1)  # the same record, sent again
    assert seen.merges("run", point, 2)
    assert not seen.merges("other run", point, 2)
    nan = Metric("loss", float("nan"), 5, 3, 7, 0)
    assert not seen.merges("run", nan, 1)
    assert seen.merges("run", nan._replace(value=float("nan")), 2)


def test_a_param_keeps_its_first_value_and_its_tag_follows() -> None:
    state = runstate.empty()
    runstate.apply(state, "w", 1, Kind.RUN, 1, {"name": "n", "metadata": {"a": 1}})
    assert wanted(state, {}, {}).params == {"a": "1"}
    runstate.apply(state, "w", 2, Kind.METADATA, 2, {"set": {"a": 2}})
    changed = wanted(state, {"a": "1"}, {})
    assert (changed.params, changed.tags["simspool.metadata.a"]) == ({}, "2")
    runstate.apply(state, "w", 3, Kind.METADATA, 3, {"set": {"a": 1}})
    back = wanted(state, {"a": "1"}, {"simspool.metadata.a": "2"})
    assert back.tags["simspool.metadata.a"] == "1"
    assert "simspool.metadata.a" not in wanted(state, {"a": "1"}, {}).tags
