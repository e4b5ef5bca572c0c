"""Objects as bytes and back, and the published simvue package's own reading of our bytes (and we of its)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simspool.sdk import Client, NotSerialisable, Run
from simspool.sdk.artifacts import deserialise, serialise


class Custom:
    def __init__(self) -> None:
        self.x = 5


def figure() -> Any:
    import plotly.graph_objects as go

    return go.Figure(data=[go.Scatter(x=[1, 2], y=[3, 4])])


def test_objects_come_back_through_the_client() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan]}, index=["r1", "r2"])
    with Run(mode="offline") as run:
        run.init("objects")
        assert run.save_object({"k": [1, "x", None, True]}, "output", "json")
        assert run.save_object(np.arange(6.0).reshape(2, 3), "output", "numpy")
        assert run.save_object(frame, "output", "frame")
        assert run.save_object(figure(), "output", "figure")
        assert run.save_object(Custom(), "output", "pickle", allow_pickle=True)
    client = Client()
    assert client.get_artifact("objects", "json") == {"k": [1, "x", None, True]}
    np.testing.assert_array_equal(client.get_artifact("objects", "numpy"), np.arange(6.0).reshape(2, 3))
    pd.testing.assert_frame_equal(client.get_artifact("objects", "frame"), frame)
    assert client.get_artifact("objects", "figure").to_dict()["data"][0]["type"] == "scatter"
    assert isinstance(client.get_artifact("objects", "pickle"), bytes)
    assert [a["mime_type"] for a in client.list_artifacts("objects")] == [
        "application/vnd.plotly.v1+json", "application/vnd.simvue.df.v1", "application/json", "application/vnd.simvue.numpy.v1",
        "application/octet-stream",
    ]  # fmt: skip


def test_pickle_needs_permission_both_ways() -> None:
    value = complex(1, 2)
    with pytest.raises(NotSerialisable, match="allow_pickle"):
        serialise(value)
    with pytest.raises(NotSerialisable, match="allow_pickle"):
        serialise(np.array([object()]))
    data, mime = serialise(value, allow_pickle=True)
    assert deserialise(data, mime) == data
    assert deserialise(data, mime, allow_pickle=True) == value
    with pytest.raises(NotSerialisable, match="pickled"):
        serialise(lambda: None, allow_pickle=True)
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(NotSerialisable):
        serialise(nested)


def test_an_object_array_is_refused_when_read_too() -> None:
    import io

    out = io.BytesIO()
    np.save(out, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        deserialise(out.getvalue(), "application/vnd.simvue.numpy.v1", allow_pickle=True)


def test_the_published_package_reads_ours_and_we_read_its() -> None:
    theirs = pytest.importorskip("simvue.serialization")
    samples = {"numpy": np.arange(3), "frame": pd.DataFrame({"a": [1.5]}), "json": {"a": [1]}, "figure": figure()}
    for name, value in samples.items():
        data, mime = serialise(value)
        their_data, their_mime = theirs.serialize_object(value, allow_pickle=False)
        assert mime == their_mime, name
        if name != "figure":
            assert data == their_data, name
        for read in (theirs.deserialize_data(data, mime, allow_pickle=False), deserialise(their_data, mime)):
            assert str(read) == str(value), name


def test_a_matplotlib_figure_is_kept_as_plotly() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    drawn = Figure()
    axes = drawn.add_subplot()
    axes.plot([1, 2, 3], [1, 4, 9])
    data, mime = serialise(drawn)
    assert mime == "application/vnd.plotly.v1+json"
    assert json.loads(data)["data"]


def test_torch_tensors_and_state_dictionaries() -> None:
    torch = pytest.importorskip("torch")
    state = OrderedDict(w=torch.ones(2))
    for value in (torch.arange(3), state):
        data, mime = serialise(value)
        assert mime == "application/vnd.simvue.torch.v1"
        assert str(deserialise(data, mime)) == str(value)


def test_saving_loads_no_library_that_the_script_did_not_load() -> None:
    text = (
        "import sys; from simspool.sdk.artifacts import serialise; serialise({'a': 1}); serialise(b'x', allow_pickle=True);"
        "print([m for m in ('numpy', 'pandas', 'torch', 'plotly', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "[]\n"
