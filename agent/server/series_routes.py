"""The dialect's metrics, array metrics and events over HTTP."""

from __future__ import annotations

from aiohttp import web

from . import bodies, checks, filters
from .context import MAX_IDS, answer, flag, listed, page, store, who, whole
from .errors import Invalid
from .metric_views import AXES
from .times import from_text


async def post_metrics(request: web.Request) -> web.Response:
    """Store points."""
    body = await bodies.mapping(request)
    run = checks.name(body, "run")
    return answer({"count": await store(request).append_metrics(who(request), run, body.get("metrics"))})


async def get_metrics(request: web.Request) -> web.Response:
    """Return values of metrics, by run or aggregated over the runs."""
    wanted, metrics = listed(request, "runs"), listed(request, "metrics")
    axis = request.query.get("xaxis", "step")
    if wanted is None or metrics is None:
        raise Invalid("runs and metrics: JSON lists are expected")
    if axis not in AXES:
        raise Invalid(f"xaxis: one of {', '.join(AXES)} is expected")
    most = whole(request, "max_points") or None
    found = await store(request).metric_values(who(request), wanted, metrics, axis, most, flag(request, "aggregate"))
    return answer(found)


async def get_names(request: web.Request) -> web.Response:
    """Return the names of some runs' metrics."""
    wanted = listed(request, "runs")
    if wanted is None:
        raise Invalid("runs: a JSON list is expected")
    return answer(await store(request).metric_names(who(request), wanted))


async def get_span(request: web.Request) -> web.Response:
    """Return the extent of some runs' metrics; the runs are in the body, or in the query."""
    wanted = listed(request, "runs")
    if wanted is None:
        wanted = checks.names(await bodies.value(request) or [], "runs")
    if not wanted or len(wanted) > MAX_IDS:
        raise Invalid("runs: a list of ids is expected")
    return answer(await store(request).metric_span(who(request), wanted))


async def post_arrays(request: web.Request) -> web.Response:
    """Store array metrics."""
    rows = checks.arrays(await bodies.value(request))
    await store(request).append_arrays(who(request), request.match_info["run"], rows)
    return answer({"count": len(rows)})


async def get_array_values(request: web.Request) -> web.Response:
    """Return the array of a step."""
    step = whole(request, "step")
    if step is None:
        raise Invalid("step: a number is expected")
    run, metric = request.match_info["run"], request.match_info["metric"].lstrip("/")
    return answer(await store(request).array_values(who(request), run, metric, step))


async def get_array_span(request: web.Request) -> web.Response:
    """Return the extent of an array metric."""
    run, metric = request.match_info["run"], request.match_info["metric"].lstrip("/")
    return answer(await store(request).array_span(who(request), run, metric))


async def post_events(request: web.Request) -> web.Response:
    """Store events."""
    body = await bodies.mapping(request)
    run, rows = checks.name(body, "run"), checks.events(body.get("events"))
    await store(request).append_events(who(request), run, rows)
    return answer({"count": len(rows)})


async def get_events(request: web.Request) -> web.Response:
    """Return a page of a run's events."""
    data, count = await store(request).list_events(who(request), request.query.get("run", ""), page(request))
    return answer({"data": data, "count": count})


async def get_histogram(request: web.Request) -> web.Response:
    """Return counts of a run's events by time."""
    query = request.query
    try:
        window = float(query.get("window", ""))
    except ValueError:
        raise Invalid("window: seconds as a number are expected") from None
    begin, end = (from_text(query.get(key), key) for key in ("timestamp_begin", "timestamp_end"))
    wanted = filters.parse(query.getall("filters", []))
    found = await store(request).event_histogram(who(request), query.get("run", ""), begin, end, window, wanted)
    return answer({"data": found})


def add(app: web.Application) -> None:
    """Add the routes."""
    route = app.router
    route.add_post("/api/metrics", post_metrics)
    route.add_get("/api/metrics", get_metrics)
    route.add_get("/api/metrics/names", get_names)
    route.add_get("/api/metrics/span", get_span)
    route.add_post("/api/runs/{run}/metrics", post_arrays)
    route.add_post("/api/runs/{run}/metrics/", post_arrays)
    # a metric's name may hold slashes, and the published client doubles the one before it
    route.add_get(r"/api/runs/{run}/metrics/{metric:.+}/values", get_array_values)
    route.add_get(r"/api/runs/{run}/metrics/{metric:.+}/span", get_array_span)
    route.add_post("/api/events", post_events)
    route.add_get("/api/events", get_events)
    route.add_get("/api/events/histogram", get_histogram)
