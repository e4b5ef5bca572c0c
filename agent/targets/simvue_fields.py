"""A run's fields, metadata, alerts and status on a Simvue server: made, and brought up to date. What is refused is left out, and said."""

from __future__ import annotations

import json
from typing import Any

from .port import TooLarge, Unreachable
from .simvue_api import Api, Rejected
from .simvue_books import RUN, SENDING, STATE, Books
from .simvue_known import Job, Known, Never
from .simvue_state import Wanted, digest, folder_body
from .simvue_words import name_there


class RunFields:
    """Of one run. Methods raise Unreachable and Refused."""

    def __init__(self, api: Api, run: str) -> None:
        self._api, self.run = api, run

    async def create(self, want: Wanted, note: str) -> Known:
        """Make the run, with all that is known of it but its end. Raises Never."""
        books = Books()
        first = {"status": want.status["status"] if want.status["status"] == "created" else "running"}
        own = {RUN: self.run, SENDING: note or books.note()}
        fields = {key: value for key, value in want.fields.items() if value is not None}
        metadata = {**want.metadata}
        digests = {key: digest(value) for key, value in {**want.fields, "status": first, "metadata": metadata}.items()}
        known = Known("", books, metadata, digests=digests, made=True)
        try:
            await self._api.folder(fields.get("folder", "/"), fresh=False)
            for name in want.alerts:
                await self._define(known, want, name)
            full = {
                **fields, **first, "heartbeat_timeout": want.fields.get("heartbeat_timeout"),
                "metadata": {**metadata, **own, STATE: json.dumps(digests, sort_keys=True)},
                "alerts": [identity for identity, _, _ in known.alerts.values()],
            }  # fmt: skip
            known.id, theirs = await self._api.create_run(full)
            if theirs:
                raise Rejected(409, "the name is another run's")
        except (Rejected, TooLarge):
            # something in it is refused: the run is made without, and then given one thing after the other
            known = Known("", books, made=True)
            try:
                known.id, theirs = await self._api.create_run({"folder": "/", "heartbeat_timeout": None, **first, "metadata": own})
            except (Rejected, TooLarge) as error:
                raise Never(f"{self._api.url} does not make the run: {error}") from None
            if theirs:
                raise Never(f"{self._api.url} makes no run without a name that only it has") from None
        known.metadata.update(own)
        return known

    async def _define(self, known: Known, want: Wanted, name: str) -> str | None:
        """Make an alert that a run wants, or find it; return why not, where it cannot be."""
        there = name_there(name)
        for body in (want.alerts[name]["body"], want.alerts[name]["spare"]):
            try:
                known.alerts[there] = await self._api.alert(body), body["source"], None
            except (Rejected, TooLarge) as error:
                problem = str(error)
            else:
                return None
        return problem

    async def note(self, known: Known, own: dict[str, Any]) -> None:
        """Put our own notes into the run's metadata. Raises Never where they are not taken."""
        try:
            await self._api.change_run(known.id, {"metadata": own})
        except (Rejected, TooLarge) as error:
            if isinstance(error, Rejected) and error.status == 404:
                raise Unreachable(f"run {self.run} is gone from {self._api.url}") from None
            raise Never(f"{self._api.url} does not take what is to be noted of the run: {error}") from None
        known.metadata.update(own)

    async def update(self, known: Known, want: Wanted | None, own: dict[str, Any], jobs: list[Job]) -> None:
        """Bring the run's fields, metadata, alerts and status up to date, with what is to be noted of it, in one request where it goes."""
        job = next((job for job in jobs if job.plan.stateful), jobs[0])
        body: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if want is not None:
            for what, detail in sorted(want.changed):
                job.remark(what, detail)
            body = {key: value for key, value in want.fields.items() if known.digests.get(key) != digest(value)}
            if known.made:
                body = {key: value for key, value in body.items() if value is not None}
            if known.digests.get("metadata") != digest(want.metadata):
                metadata = {key: value for key, value in want.metadata.items() if known.metadata.get(key, ...) != value}
            status_due = known.digests.get("status") != digest(want.status) and want.status["status"] != "created"
            if status_due:
                body |= want.status
            if "folder" in body:
                await self._make_folder(body, job)
            fresh = [name for name in want.alerts if name_there(name) not in known.alerts]
            for name in fresh:
                problem = await self._define(known, want, name)
                if problem:
                    job.remark("not kept", f"alert {name[:200]}: {problem}")
            if fresh and known.alerts:
                body["alerts"] = [identity for identity, _, _ in known.alerts.values()]
            known.digests = {**known.digests, **{key: digest(value) for key, value in want.fields.items()}}
            known.digests |= {"metadata": digest(want.metadata), "status": digest(want.status)}
            text = json.dumps(known.digests, sort_keys=True)
            if known.metadata.get(STATE) != text:
                own = {**own, STATE: text}
            known.made = False
        if body or metadata or own:
            await self._change(known, body, metadata, own, job)
        if want is not None:
            await self._alert_states(known, want, job)

    async def _make_folder(self, body: dict[str, Any], job: Job) -> None:
        try:
            await self._api.folder(body["folder"])
        except Rejected as error:
            job.remark("not kept", f"folder {body['folder'][:200]}: {error}")
            body["folder"] = "/"

    async def _change(self, known: Known, body: dict[str, Any], metadata: dict[str, Any], own: dict[str, Any], job: Job) -> None:
        """Change a run. What the server refuses of it is remarked, and does not keep the rest away."""
        everything = {**metadata, **own}
        try:
            await self._api.change_run(known.id, {**body, "metadata": everything} if everything else body)
        except (Rejected, TooLarge):
            if await self._api.run(known.id) is None:
                raise Unreachable(f"run {self.run} is gone from {self._api.url}") from None
        else:
            known.metadata.update(everything)
            return
        end: dict[str, Any] = {key: body.pop(key) for key in ("status", "endtime") if key in body}
        tries: list[tuple[str, dict[str, Any]]] = [(key, {key: value}) for key, value in body.items()]
        tries += [(f"metadata {key}", {"metadata": {key: value}}) for key, value in metadata.items()]
        if end:
            tries.append(("status", end))
        for what, one in tries:
            try:
                await self._api.change_run(known.id, one)
            except (Rejected, TooLarge) as error:
                job.remark("not kept", f"{what[:200]}: {error}")
        known.metadata.update(metadata)
        if own:
            await self.note(known, own)

    async def _alert_states(self, known: Known, want: Wanted, job: Job) -> None:
        """Set the states of alerts that are ours to set; the server judges the others itself."""
        for name, alert in want.alerts.items():
            there = name_there(name)
            identity, source, state = known.alerts.get(there, ("", "", None))
            if not identity or source != "user" or alert["state"] is None or alert["state"] == state:
                continue
            try:
                await self._api.set_alert(identity, known.id, alert["state"])
            except Rejected as error:
                job.remark("not kept", f"the state of alert {name[:200]}: {error}")
            known.alerts[there] = identity, source, alert["state"]

    async def folders(self, job: Job) -> None:
        """Give folders the details that a range tells of them."""
        for told in job.plan.folders:
            path = told.get("path")
            body = folder_body(told, job.remark)
            try:
                identity = await self._api.folder(str(path))
                if body:
                    await self._api.change_folder(identity, body)
            except (Rejected, TooLarge) as error:
                job.remark("not kept", f"details of folder {str(path)[:200]}: {error}")
