"""All that is measured of one run on one host: its process trees, the host, control groups, disks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .cgroup import Cgroups
from .host import HostReading, disk_values, host_values
from .tree import Identity, Processes, TreeMeter

DEFAULT_INTERVAL = 60  # seconds between samples, as Simvue's
_MOST_GROUPS = 64  # of a run's processes: those of a host with more are in few groups in truth


class RunMeter:
    """Measures one run. `hidden` and `pss_every` are a TreeMeter's."""

    def __init__(
        self, processes: Processes, cgroups: Cgroups, *, hidden: frozenset[int] = frozenset(), pss_every: float | None = None
    ) -> None:  # fmt: skip
        self._tree = TreeMeter(processes, hidden=hidden, pss_every=pss_every)
        self._cgroups = cgroups
        self._before: HostReading | None = None

    @property
    def pids(self) -> set[int]:
        """The processes of the last measurement."""
        return self._tree.pids

    def measure(
        self, roots: Sequence[Identity], host: HostReading, disks: Iterable[tuple[float, int | None]]
    ) -> dict[str, float | int]:  # fmt: skip
        """Return every quantity that can be had; empty when none of the processes lives.

        `disks`: what is left where the run writes. Quantities over time are since the last call, absent in the first.
        """
        values = self._tree.measure(roots)
        if not values:
            return values
        values.update(host_values(host, self._before))
        self._before = host
        values.update(disk_values(disks))
        values.update(self._limits(roots))
        left = [v for name in ("host", "cgroup") if (v := values.get(f"resources/{name}.memory.left")) is not None]
        if left:
            values["resources/memory.left"] = min(left)
        return values

    def _limits(self, roots: Sequence[Identity]) -> dict[str, float | int]:
        """Return the limits of the roots' groups; where these differ, of the one that has least memory left."""
        groups = {m for pid, _ in roots[:_MOST_GROUPS] if (m := self._cgroups.membership(pid))}
        found = [self._cgroups.measure(m) for m in groups]
        return min(found, key=lambda v: v.get("resources/cgroup.memory.left", float("inf")), default={})
