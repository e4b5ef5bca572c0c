"""Who sees and changes what: owner, tenant, named users, the public; and that dedupe tells nobody what others have."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest


def upload(live: Any, data: bytes, token: str = "", name: str = "n") -> tuple[str, bool]:
    digest = hashlib.sha256(data).hexdigest()
    made = live.ok("POST", "/api/artifacts", {"name": name, "size": len(data), "checksum": digest}, token=token)
    if made["url"]:
        assert live.request("PUT", made["url"].removeprefix(live.url), data, token=None)[0] == 200
    return made["id"], bool(made["url"])


@pytest.mark.parametrize(
    ("visibility", "readers"),
    [
        (None, set()), ({"tenant": True}, {"colleague"}), ({"public": True}, {"colleague", "friend", "stranger"}), ({"users": ["friend"]},
        {"friend"}),
    ],
)  # fmt: skip
def test_visibility_of_runs(live: Any, visibility: Any, readers: set[str]) -> None:
    tokens = {"colleague": live.user("colleague"), "friend": live.user("friend", "far"), "stranger": live.user("stranger", "farther")}
    run = live.ok(
        "POST", "/api/runs", {"folder": "/seen", "name": "seen", "visibility": visibility} if visibility else {"folder": "/seen"}
    )["id"]
    artifact, _ = upload(live, b"seen bytes")
    live.ok("PUT", f"/api/runs/{run}/artifacts/{artifact}", {"category": "input"})
    for name, token in tokens.items():
        reads = name in readers
        expected = 200 if reads else 404
        for path in (
            f"/api/runs/{run}",
            f"/api/runs/{run}/artifacts",
            f"/api/runs/{run}/abort",
            f"/api/events?run={run}",
            f"/api/artifacts/{artifact}",
        ):
            if path.startswith("/api/artifacts") and not reads:
                continue  # the same artifact may hang on a run that is seen
            assert live.call("GET", path, token=token)[0] == expected, (name, path)
        listed = {r["id"] for r in live.ok("GET", "/api/runs", token=token)["data"]}
        assert (run in listed) == reads
        for method, path, body in (
            ("PUT", f"/api/runs/{run}", {"status": "failed"}), ("DELETE", f"/api/runs/{run}", None), ("PUT", f"/api/runs/{run}/abort",
            {"reason": "x"}),
            ("PUT", f"/api/runs/{run}/heartbeat", None), ("POST", "/api/events", {"run": run, "events": [{"message": "m"}]}),
            ("POST", "/api/metrics", {"run": run, "metrics": [{"values": {"x": 1}}]}),
        ):  # fmt: skip
            assert live.call(method, path, body, token=token)[0] == (403 if reads else 404), (name, method, path)
        if reads:
            assert live.ok("PUT", f"/api/runs/{run}/starred", {"starred": True}, token=token)["starred"]
    assert live.ok("GET", f"/api/runs/{run}")["starred"] is False, "a star is its user's own"
    assert live.ok("GET", f"/api/runs/{run}")["status"] == "created"


def test_known_content_is_known_only_to_those_who_can_read_it(live: Any) -> None:
    mine, sent = upload(live, b"secret sauce")
    assert sent
    assert upload(live, b"secret sauce")[1] is False
    other = live.user("other", "elsewhere")
    theirs, sent = upload(live, b"secret sauce", other)
    assert sent, "a stranger must show the bytes"
    assert live.call("GET", f"/api/artifacts/{mine}", token=other)[0] == 404
    assert live.ok("GET", f"/api/artifacts/{theirs}", token=other)["uploaded"]
    run = live.ok("POST", "/api/runs", {"folder": "/pub", "visibility": {"public": True}})["id"]
    shared, _ = upload(live, b"shared sauce")
    live.ok("PUT", f"/api/runs/{run}/artifacts/{shared}", {"category": "output"})
    assert upload(live, b"shared sauce", other)[1] is False, "what can be read need not be sent"
    assert live.call("DELETE", f"/api/artifacts/{shared}", token=other)[0] == 403
    foreign = live.ok("POST", "/api/runs", {"folder": "/x"}, token=other)["id"]
    assert live.call("PUT", f"/api/runs/{foreign}/artifacts/{shared}", {"category": "output"}, token=other)[0] == 422
    assert live.call("PUT", f"/api/runs/{foreign}/artifacts/{mine}", {"category": "output"}, token=other)[0] == 404


def test_documents_have_owners_too(live: Any) -> None:
    other = live.user("other", "elsewhere")
    for endpoint, body in (
        ("folders", {"path": "/own"}), ("tags", {"name": "own"}), ("alerts", {"name": "own", "source": "user"}), ("grids", {"name": "own",
        "grid": [[1, 2]]}),
        ("storage", {"name": "own", "backend": "File"}),
    ):  # fmt: skip
        made = live.ok("POST", f"/api/{endpoint}", body)["id"]
        assert live.call("GET", f"/api/{endpoint}/{made}", token=other)[0] == 404
        listed = live.ok("GET", f"/api/{endpoint}", token=other)
        assert made not in {d["id"] for d in (listed if endpoint == "storage" else listed["data"])}
        same = live.ok("POST", f"/api/{endpoint}", body, token=other)["id"]
        assert same != made, "names are unique for their owner only"
        live.ok("PUT", f"/api/{endpoint}/{made}", {"visibility": {"public": True}})
        assert live.ok("GET", f"/api/{endpoint}/{made}", token=other)["user"] == "simspool"
        assert live.call("PUT", f"/api/{endpoint}/{made}", {"description": "x"}, token=other)[0] == 403
        assert live.call("DELETE", f"/api/{endpoint}/{made}", token=other)[0] == 403
        live.ok("DELETE", f"/api/{endpoint}/{made}")
        assert live.call("GET", f"/api/{endpoint}/{made}")[0] == 404


def test_alert_status_needs_the_run(live: Any) -> None:
    other = live.user("other", "elsewhere")
    run = live.ok("POST", "/api/runs", {"folder": "/"})["id"]
    theirs = live.ok("POST", "/api/alerts", {"name": "mine", "source": "user", "abort": True}, token=other)["id"]
    assert live.call("PUT", f"/api/alerts/{theirs}/status/{run}", {"status": "critical"}, token=other)[0] == 404
    assert live.call("POST", "/api/runs", {"folder": "/", "alerts": [theirs]})[0] == 404
    rule = live.ok("POST", "/api/alerts", {"name": "r", "source": "events", "alert": {"pattern": "x"}})["id"]
    assert live.call("PUT", f"/api/alerts/{rule}/status/{run}", {"status": "ok"})[0] == 422
    mine = live.ok("POST", "/api/alerts", {"name": "m", "source": "user", "abort": True})["id"]
    live.ok("PUT", f"/api/alerts/{mine}/status/{run}", {"status": "critical"})
    assert live.ok("GET", f"/api/runs/{run}/abort") == {"status": True, "reason": "alert m"}
