"""The shape of the house: the core decides without clock, chance, thread or socket, and imports point one way.

    errors <- wire <- core <- io <- cli

What a module imports is read from its source, imports inside functions and under `TYPE_CHECKING` included: a type
is knowledge of another layer too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "iii_zmq"
ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

LAYERS = ("errors", "wire", "core", "io", "cli")
FACADE = ""  # iii_zmq/__init__.py: it offers users what the layers below cli have

# Whatever is not named here is refused, so that the next clock or socket needs no list of its own.
CORE_MAY_IMPORT = frozenset((
    "__future__", "abc", "bisect", "collections", "collections.abc", "dataclasses", "hashlib", "heapq", "itertools",
    "math", "typing",
))  # fmt: skip
WIRE_MAY_IMPORT = CORE_MAY_IMPORT | {"msgpack", "msgpack.exceptions", "re", "struct"}
IMPURE_CALLS = frozenset(("__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"))
IMPURE = (
    "asyncio", "concurrent.futures", "datetime", "logging", "multiprocessing", "os", "pathlib", "queue", "random",
    "secrets", "select", "selectors", "signal", "socket", "subprocess", "sys", "threading", "time", "uuid", "zmq",
)  # fmt: skip


def module_of(file: Path) -> str:
    """`iii_zmq.core.broker.core` of iii_zmq/core/broker.py; a package's own name of its `__init__.py`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def layer_of(module: str) -> str:
    return [*module.split("."), FACADE][1]


def imports_of(module: str, source: str) -> Iterator[str]:
    """The absolute names of all modules that `source`, being `module`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found = [name for name in inner if name in MODULES]
            yield from found
            if len(found) < len(inner):
                yield base


def absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = MODULES[module].name == "__init__.py"
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def imports(module: str) -> set[str]:
    return set(imports_of(module, MODULES[module].read_text()))


def outside(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] != PACKAGE}


def inside(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == PACKAGE}


def is_in(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


PURE_MODULES = [module for module in MODULES if layer_of(module) in ("errors", "wire", "core")]


def test_the_modules_are_found() -> None:
    assert {layer_of(module) for module in MODULES} == {*LAYERS, FACADE, "_version"}
    assert len(PURE_MODULES) > 20


@pytest.mark.parametrize("module", PURE_MODULES)
def test_a_pure_module_imports_only_what_is_pure(module: str) -> None:
    allowed = WIRE_MAY_IMPORT if layer_of(module) == "wire" else CORE_MAY_IMPORT
    assert outside(module) <= allowed


@pytest.mark.parametrize("module", PURE_MODULES)
def test_a_pure_module_neither_opens_nor_prints(module: str) -> None:
    calls = [node.func for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
    assert {call.id for call in calls if isinstance(call, ast.Name)} & IMPURE_CALLS == set()


@pytest.mark.parametrize("module", [module for module in MODULES if layer_of(module) in LAYERS])
def test_imports_point_one_way(module: str) -> None:
    allowed = {*LAYERS[: LAYERS.index(layer_of(module)) + 1], "_version"}
    if layer_of(module) == "cli":
        allowed.add(FACADE)  # the command line is a user
    assert {layer_of(name) for name in inside(module)} <= allowed


def test_nothing_imports_the_command_line() -> None:
    assert [module for module in MODULES if layer_of(module) != "cli" and "cli" in map(layer_of, inside(module))] == []


@pytest.mark.parametrize("half", ["broker", "worker"])
def test_the_halves_of_the_core_know_nothing_of_each_other(half: str) -> None:
    """What both need stands beside them, in core."""
    other = f"{PACKAGE}.core.{'worker' if half == 'broker' else 'broker'}"
    modules = [module for module in MODULES if module.startswith(f"{PACKAGE}.core.{half}.")]
    assert len(modules) > 10
    assert {
        module: found for module in modules if (found := {one for one in inside(module) if is_in(other, one)})
    } == {}


def test_the_package_has_no_circle() -> None:
    """Nor one of types only: who reads one of its files must read them all."""
    graph = {module: inside(module) - {module} for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


# -- the checks themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPURE)
def test_clocks_chance_threads_and_sockets_are_not_allowed(name: str) -> None:
    assert {name, name.split(".")[0]} & WIRE_MAY_IMPORT == set()


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import time", "time"),
        ("import concurrent.futures as later", "concurrent.futures"),
        ("from time import monotonic", "time"),
        ("def f():\n    import zmq.asyncio", "zmq.asyncio"),
        ("if TYPE_CHECKING:\n    from ...io.worker.link import Link", "iii_zmq.io.worker.link"),
        ("from ...io import sockets", "iii_zmq.io.sockets"),
        ("from ... import wire", "iii_zmq.wire"),
        ("from ... import __version__", "iii_zmq"),
        ("from ...cli.exits import OK", "iii_zmq.cli.exits"),
        ("import iii_zmq.cli.app", "iii_zmq.cli.app"),
        ("from . import calls", "iii_zmq.core.broker.calls"),
        ("from .calls import Calls", "iii_zmq.core.broker.calls"),
    ],
)
def test_an_import_is_read_however_it_is_written(line: str, imported: str) -> None:
    assert list(imports_of("iii_zmq.core.broker.core", line)) == [imported]
