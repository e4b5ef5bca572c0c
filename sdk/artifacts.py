"""Objects as bytes, and back: the forms of the published `simvue` package, so that each can read the other's.

A library is used for writing only when the user's process has it already (an object of it is proof), and for reading on demand. Nothing is
unpickled unless the caller allows it.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from .errors import NotSerialisable

NUMPY = "application/vnd.simvue.numpy.v1"
DATAFRAME = "application/vnd.simvue.df.v1"
TORCH = "application/vnd.simvue.torch.v1"
PLOTLY = "application/vnd.plotly.v1+json"
JSON = "application/json"
PICKLE = "application/octet-stream"


def serialise(obj: Any, *, allow_pickle: bool = False) -> tuple[bytes, str]:
    """Return an object's bytes and MIME type.

    NumPy arrays (.npy), pandas data frames (CSV), torch tensors and state dictionaries, plotly and matplotlib figures (plotly JSON), what
    JSON can hold; with `allow_pickle`, anything that pickles. Raises NotSerialisable otherwise.
    """
    module, name = type(obj).__module__, type(obj).__name__
    try:
        if _is(obj, "numpy", "ndarray"):
            return _numpy(obj), NUMPY
        if _is(obj, "pandas", "DataFrame"):
            return obj.to_csv().encode(), DATAFRAME
        if _is_tensor(obj) or (isinstance(obj, dict) and obj and all(map(_is_tensor, obj.values()))):
            return _torch(obj), TORCH
        if module.startswith("plotly") and name in {"Figure", "FigureWidget"}:
            return obj.to_json(engine="json").encode(), PLOTLY
        if module.startswith("matplotlib") and name == "Figure":
            return _matplotlib(obj), PLOTLY
        if name == "module" and getattr(obj, "__name__", "") == "matplotlib.pyplot":
            return _matplotlib(obj.gcf()), PLOTLY
    except NotSerialisable:
        if not allow_pickle:
            raise
    else:
        found = _json(obj)
        if found is not None:
            return found, JSON
    if allow_pickle:
        return _pickle(obj), PICKLE
    raise NotSerialisable(
        f"an object of type {module}.{name} has no safe form: save what JSON, NumPy, pandas, torch, plotly or matplotlib hold, "
        "or give allow_pickle=True"
    )


def deserialise(data: bytes, mime: str, *, allow_pickle: bool = False) -> Any:
    """Return the object that bytes of a MIME type hold; the bytes themselves where the type is not one of `serialise`'s.

    Pickled objects are bytes too, unless `allow_pickle`: unpickling runs code that the sender chose. Raises NotSerialisable
    when a library is missing, and what it raises for bytes that are not of the type.
    """
    kind = mime.partition(";")[0].strip().lower()
    if kind == JSON:
        import json

        return json.loads(data)
    if kind == NUMPY:
        return _library("numpy").load(io.BytesIO(data), allow_pickle=False)
    if kind == DATAFRAME:
        return _library("pandas").read_csv(io.BytesIO(data), index_col=0)
    if kind == TORCH:
        return _library("torch").load(io.BytesIO(data), weights_only=True)
    if kind == PLOTLY:
        return _library("plotly.io").from_json(data.decode())
    if kind == PICKLE and allow_pickle:
        import pickle

        return pickle.loads(data)  # noqa: S301
    return data


def _is(obj: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None)
    return isinstance(kind, type) and isinstance(obj, kind)


def _is_tensor(obj: Any) -> bool:
    return _is(obj, "torch", "Tensor")


def _numpy(array: Any) -> bytes:
    out = io.BytesIO()
    try:
        sys.modules["numpy"].save(out, array, allow_pickle=False)
    except ValueError:
        raise NotSerialisable(
            f"an array of type {array.dtype} holds Python objects: convert it to numbers, or give allow_pickle=True"
        ) from None
    return out.getvalue()


def _torch(obj: Any) -> bytes:
    out = io.BytesIO()
    sys.modules["torch"].save(obj, out)
    return out.getvalue()


def _matplotlib(figure: Any) -> bytes:
    try:
        import plotly.tools
    except ImportError:
        raise NotSerialisable("a matplotlib figure is kept as a plotly figure: install plotly, or save_file the image") from None
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the conversion, about matplotlib's own parts
            return str(plotly.tools.mpl_to_plotly(figure).to_json(engine="json")).encode()
    except Exception as error:  # noqa: BLE001 - it knows only some of matplotlib's parts
        raise NotSerialisable(f"this matplotlib figure cannot become a plotly figure ({error}): save_file the image") from None


def _json(obj: Any) -> bytes | None:
    import json

    try:
        return json.dumps(obj).encode()
    except (TypeError, ValueError, RecursionError):
        return None


def _pickle(obj: Any) -> bytes:
    import pickle

    try:
        return pickle.dumps(obj)
    except Exception as error:  # noqa: BLE001 - pickling runs the object's own code
        raise NotSerialisable(f"an object of type {type(obj).__name__} cannot be pickled: {error}") from None


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotSerialisable(f"reading this artifact needs {name.partition('.')[0]}: install it, or use get_artifact_as_file") from None
