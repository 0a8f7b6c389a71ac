"""Descriptions of the chips that programs are compiled for, and what they can do."""

from __future__ import annotations

from opcel_compiler.targets.load import TargetError, list_targets, load_target
from opcel_compiler.targets.schema import MemoryLevel, Target, Unit

__all__ = ["MemoryLevel", "Target", "TargetError", "Unit", "list_targets", "load_target"]
