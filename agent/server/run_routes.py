"""The dialect's runs over HTTP: create, read, change, heartbeat, abort, their artifacts and grids."""

from __future__ import annotations

from aiohttp import web

from . import bodies, checks
from .context import answer, flag, links, listed, page, store, who
from .errors import Invalid
from .run_views import PARTS

_FLAGS = {f"return_{part}": part for part in PARTS}


async def post_runs(request: web.Request) -> web.Response:
    """Create a run, or a list of runs (all or none)."""
    body = await bodies.value(request)
    listed_bodies = body if isinstance(body, list) else [body]
    if len(listed_bodies) > 1000 or not all(isinstance(entry, dict) for entry in listed_bodies):
        raise Invalid("a run's object, or a list of at most 1000, is expected")
    created = await store(request).create_runs(who(request), [checks.run(entry, new=True) for entry in listed_bodies])
    return answer(created if isinstance(body, list) else created[0])


async def get_runs(request: web.Request) -> web.Response:
    """Return a page of runs, with the parts that the flags name (all without any flag)."""
    asked = [key for key in _FLAGS if key in request.query]
    parts = [part for key, part in _FLAGS.items() if flag(request, key)] if asked else PARTS
    data, count = await store(request).list_runs(who(request), page(request), parts, listed(request, "attributes"))
    return answer({"data": data, "count": count})


async def get_run(request: web.Request) -> web.Response:
    """Return a run."""
    return answer(await store(request).get_run(who(request), request.match_info["run"]))


async def put_run(request: web.Request) -> web.Response:
    """Change a run."""
    changes = checks.run(await bodies.mapping(request), new=False)
    return answer(await store(request).update_run(who(request), request.match_info["run"], changes))


async def delete_run(request: web.Request) -> web.Response:
    """Delete a run."""
    return answer(await store(request).delete_run(who(request), request.match_info["run"]))


async def put_heartbeat(request: web.Request) -> web.Response:
    """Note a heartbeat."""
    return answer(await store(request).beat(who(request), request.match_info["run"]))


async def get_abort(request: web.Request) -> web.Response:
    """Return the abort flag."""
    return answer(await store(request).abort_flag(who(request), request.match_info["run"]))


async def put_abort(request: web.Request) -> web.Response:
    """Raise the abort flag."""
    reason = checks.text(await bodies.mapping(request), "reason", most=checks.MAX_TEXT, optional=True, empty=True)
    return answer(await store(request).request_abort(who(request), request.match_info["run"], reason or ""))


async def put_starred(request: web.Request) -> web.Response:
    """Star or unstar a run."""
    starred = bool((await bodies.mapping(request)).get("starred"))
    return answer(await store(request).star_run(who(request), request.match_info["run"], starred))


async def get_artifacts(request: web.Request) -> web.Response:
    """Return a run's artifacts."""
    name, category = request.query.get("name"), request.query.get("category")
    run = request.match_info["run"]
    return answer(await store(request).run_artifacts(who(request), run, name, category, links(request)))


async def put_artifact(request: web.Request) -> web.Response:
    """Attach an artifact."""
    category = checks.category(await bodies.mapping(request))
    run, artifact = request.match_info["run"], request.match_info["artifact"]
    await store(request).attach_artifact(who(request), run, artifact, category)
    return answer({"id": artifact, "category": category})


async def get_artifact(request: web.Request) -> web.Response:
    """Return an artifact's category in a run."""
    run, artifact = request.match_info["run"], request.match_info["artifact"]
    return answer({"id": artifact, "category": await store(request).artifact_category(who(request), run, artifact)})


async def get_grids(request: web.Request) -> web.Response:
    """Return a run's grids."""
    return answer(await store(request).run_grids(who(request), request.match_info["run"]))


async def put_grid(request: web.Request) -> web.Response:
    """Put an array metric of a run on a grid."""
    metric = checks.name(await bodies.mapping(request), "metric")
    run, grid = request.match_info["run"], request.match_info["grid"]
    return answer(await store(request).attach_grid(who(request), run, grid, metric))


def add(app: web.Application) -> None:
    """Add the routes."""
    route = app.router
    route.add_post("/api/runs", post_runs)
    route.add_get("/api/runs", get_runs)
    route.add_get("/api/runs/{run}", get_run)
    route.add_put("/api/runs/{run}", put_run)
    route.add_delete("/api/runs/{run}", delete_run)
    route.add_put("/api/runs/{run}/heartbeat", put_heartbeat)
    route.add_get("/api/runs/{run}/abort", get_abort)
    route.add_put("/api/runs/{run}/abort", put_abort)
    route.add_put("/api/runs/{run}/starred", put_starred)
    route.add_get("/api/runs/{run}/artifacts", get_artifacts)
    route.add_put("/api/runs/{run}/artifacts/{artifact}", put_artifact)
    route.add_get("/api/runs/{run}/artifacts/{artifact}", get_artifact)
    route.add_get("/api/runs/{run}/grids", get_grids)
    route.add_put("/api/runs/{run}/grids/{grid}", put_grid)
