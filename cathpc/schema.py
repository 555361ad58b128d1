"""Helpers for config dataclasses; imported by every module that holds one, so it imports nothing heavy."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from typing import Any


def speed(default: Any = None, *, factory: Any = None) -> Any:
    """A config field that changes how fast a result is made, never the result: it is left out of fingerprints."""
    if factory is not None:
        return field(default_factory=factory, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})


def identity(value: Any) -> Any:
    """What of a config value decides the result, as plain JSON data: everything but the `speed` fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: identity(getattr(value, f.name)) for f in fields(value) if f.metadata.get("identity", True)}
    if isinstance(value, dict):
        return {str(k): identity(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(v) for v in value]
    if hasattr(value, "name") and hasattr(value, "value"):  # an Enum member, by its name
        return value.name
    return value
