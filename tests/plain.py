"""Modules as plain Python, where a test replaces the inside of one that may be compiled."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import iii_zmq
from iii_zmq import wire


def plain(name: str) -> ModuleType:
    """The module `iii_zmq.<name>` itself, or where it is compiled another one, of its source."""
    name = f"iii_zmq.{name}"
    if not wire.COMPILED:
        return importlib.import_module(name)
    path = Path(iii_zmq.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
