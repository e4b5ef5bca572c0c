"""Runs that die: watched while they live, and closed truthfully, with the evidence, when they are gone."""

from .declare import Survivors
from .watch import ProcessWatch

__all__ = ["ProcessWatch", "Survivors"]
