"""GPUs through NVML: utilisation, memory used, power, temperature, and the memory of a process tree.

Every error is survived: a driver that is not there (looked for again every few minutes), a quantity that a card does not have, a card that
falls off the bus in the middle. The others are still read.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_AGAIN = 300.0  # seconds until a driver that was not there is looked for again
_MIB = 1 << 20


@dataclass(slots=True)
class GpuReading:
    """One look at all cards: `values` by name, and {pid: bytes} of the processes on each card, by its index."""

    values: dict[str, float | int] = field(default_factory=dict)
    processes: dict[int, dict[int, int]] = field(default_factory=dict)

    def of_tree(self, pids: set[int]) -> dict[str, float | int]:
        """Return all values, with the memory that these processes have on each card."""
        found = dict(self.values)
        for index, users in self.processes.items():
            found[f"resources/gpu.processes.memory.{index}"] = sum(size for pid, size in users.items() if pid in pids) / _MIB
        return found


class Gpus:
    """NVML, loaded at the first `read`. For one thread at a time."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._look_at = 0.0
        self._count = 0
        self.problem = ""

    @property
    def are_due(self) -> bool:
        """Whether `read` has anything to do."""
        return self._nvml is not None or time.monotonic() >= self._look_at

    def read(self) -> GpuReading:
        """Look at every card; an empty reading where there is none. Raises nothing of NVML's."""
        reading = GpuReading()
        if self._nvml is None and not self._load():
            return reading
        errors = []
        for index in range(self._count):
            error = self._card(index, reading)
            if error:
                errors.append(f"GPU {index}: {error}")
        self.problem = "; ".join(errors)
        if self._count and len(errors) == self._count:
            self.close()  # the driver itself may have been restarted: begin again, in a while
        return reading

    def close(self) -> None:
        """Let go of the driver."""
        nvml, self._nvml = self._nvml, None
        self._look_at = time.monotonic() + _AGAIN
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                self.problem = self.problem or str(error)

    def _load(self) -> bool:
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _AGAIN
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self.problem = ""  # no NVIDIA driver here, so no need for the binding either, which is 10 MB
            return False
        import pynvml as nvml

        try:
            nvml.nvmlInit()
            self._count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.problem = str(error)
            return False
        self._nvml = nvml
        return True

    def _card(self, index: int, reading: GpuReading) -> str:
        """Read one card; returns what was wrong, unless it only lacks some quantity."""
        nvml = self._nvml
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            return str(error)
        problem = ""

        def take(read: Callable[[], None]) -> None:
            nonlocal problem
            try:
                read()
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
                return
            except nvml.NVMLError as error:
                problem = str(error)

        values = reading.values

        def utilisation() -> None:
            values[f"resources/gpu.utilisation.percent.{index}"] = float(nvml.nvmlDeviceGetUtilizationRates(card).gpu)

        def memory() -> None:
            found = nvml.nvmlDeviceGetMemoryInfo(card)
            if found.total:
                values[f"resources/gpu.utilisation.memory.{index}"] = 100.0 * found.used / found.total
            values[f"resources/gpu.memory.used.{index}"] = found.used / _MIB

        def power() -> None:
            values[f"resources/gpu.power.{index}"] = nvml.nvmlDeviceGetPowerUsage(card) / 1000.0

        def temperature() -> None:
            values[f"resources/gpu.temperature.{index}"] = nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)

        def processes() -> None:
            users: dict[int, int] = {}
            for user in nvml.nvmlDeviceGetComputeRunningProcesses(card):
                if user.usedGpuMemory is not None:
                    users[user.pid] = users.get(user.pid, 0) + user.usedGpuMemory
            reading.processes[index] = users

        for read in (utilisation, memory, power, temperature, processes):
            take(read)
        return problem
