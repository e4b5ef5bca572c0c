"""The target that settings mean. Each kind's module is imported when it is wanted."""

from __future__ import annotations

from .port import Refused, Target
from .settings import BUNDLE, TargetSettings


def make_target(settings: TargetSettings) -> Target:
    """Return a target, not connected yet. Raises Refused for an address that cannot be one."""
    if settings.kind == BUNDLE:
        raise Refused(f"nothing connects to the target {settings.name}: bundles carry to it (`agent bundle create`)")
    if settings.kind == "mlflow":
        from .mlflow import MLflowTarget

        return MLflowTarget(settings)
    if settings.kind == "directory":
        from .directory import DirectoryTarget

        return DirectoryTarget(settings)
    if settings.kind == "simvue":
        from .simvue import SimvueTarget

        return SimvueTarget(settings)
    if settings.kind == "auto":
        from .either import EitherTarget

        return EitherTarget(settings)
    from .embedded import EmbeddedTarget

    return EmbeddedTarget.of(settings)
