"""Helpers for config dataclasses; imported by every module that holds one, so it imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any


def speed(default: Any = None, *, factory: Any = None) -> Any:
    """A config field that changes how fast a result is made, never the result: it is left out of fingerprints."""
    if factory is not None:
        return field(default_factory=factory, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})


def identity(value: Any, *, defaults: bool = True) -> Any:
    """What of a config value decides the result, as plain JSON data: everything but the `speed` fields.

    With `defaults=False` without the fields that stand at their default: what fingerprints and checkpoints hold, so
    that a field which a later version brings along redoes nothing.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: identity(getattr(value, f.name), defaults=defaults)
            for f in fields(value)
            if f.metadata.get("identity", True) and (defaults or getattr(value, f.name) != _default(f))
        }
    if isinstance(value, dict):
        return {str(k): identity(v, defaults=defaults) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(v, defaults=defaults) for v in value]
    if hasattr(value, "name") and hasattr(value, "value"):  # an Enum member, by its name
        return value.name
    return value


def _default(of: Field[Any]) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default
