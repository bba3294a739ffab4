"""A scenario: which faults and which switches a sandbox plays, as one document from a file or the control endpoint.

Either a list of faults, or `{"faults": [...], "switches": {...}}`; in TOML `[[fault]]` tables and a `[switches]` table.
What it does not name stays as it was. A mistake is a `FaultError` that names the field.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .config import SandboxConfig
from .faults import FaultError, parse_faults

SWITCHES = (
    "seed", "time_scale", "bill_failures", "unknown_type_status", "unknown_keys", "strict_filenames", "history",
    "disclose_seed", "image_failures", "output_filename", "capacity", "picture", "picture_bytes",
)  # fmt: skip
"""The fields of SandboxConfig that can be set by name, also while it runs."""
_HINTS = get_type_hints(SandboxConfig)


def staged(config: SandboxConfig, document: object) -> SandboxConfig:
    """The configuration with a scenario's faults and switches in it. Raises FaultError."""
    if not isinstance(document, Mapping):
        return replace(config, faults=parse_faults(document))
    for key in document:
        if key not in ("faults", "switches"):
            raise FaultError(str(key)[:64], "is neither faults nor switches")
    if "faults" in document:
        config = replace(config, faults=parse_faults(document["faults"]))
    return switched(config, document.get("switches", {}))


def switched(config: SandboxConfig, switches: object) -> SandboxConfig:
    """The configuration with some switches set. Raises FaultError."""
    if not isinstance(switches, Mapping):
        raise FaultError("switches", "must be an object")
    for name, value in switches.items():
        place = f"switches.{str(name)[:64]}"
        if name not in SWITCHES:
            raise FaultError(place, "must be one of " + ", ".join(SWITCHES))
        try:
            TypeAdapter(_HINTS[name], config=ConfigDict(strict=True)).validate_python(value)
            config = replace(config, **{name: value})
        except ValidationError as error:
            raise FaultError(place, ", or: ".join(dict.fromkeys(one["msg"] for one in error.errors()))) from None
        except ValueError as error:
            raise FaultError(place, str(error)) from None
    return config


def switches_of(config: SandboxConfig) -> dict[str, Any]:
    """Every switch as it stands."""
    return {name: getattr(config, name) for name in SWITCHES}


def load_scenario(config: SandboxConfig, path: Path | str) -> SandboxConfig:
    """The configuration with the scenario of a file, TOML by its name or else JSON.

    Raises FaultError for what is in the file, OSError when it cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        if Path(path).suffix == ".toml":
            tables = tomllib.loads(raw.decode())
            if "faults" in tables:
                raise FaultError("faults", "is written [[fault]] in TOML")
            return staged(config, {"faults" if key == "fault" else key: value for key, value in tables.items()})
        return staged(config, json.loads(raw))
    except FaultError:
        raise
    except (ValueError, RecursionError) as error:
        raise FaultError(Path(path).name, f"is not readable: {error}") from None
