"""The child's side: `python -m bench.roles MODULE.FUNCTION '{"argument": value}'`.

A role is a function of bench.floors or bench.workers. It calls `ready(value)` once; then it
either works until it is killed, or answers questions with `answer(...)` until its standard
input ends. Standard output belongs to the answers alone; whatever else prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

_answers = sys.stdout


def ready(value: Any = None) -> None:
    """Tell the parent that the role is set up; `value` is what it gets to know."""
    _say({"value": value})


def answer(**does: Callable[..., Any]) -> None:
    """Answer the parent's questions by name until standard input ends."""
    for line in sys.stdin:
        details = json.loads(line)
        try:
            found = {"value": does[details.pop("do")](**details)}
        except Exception:
            found = {"error": traceback.format_exc()}
        _say(found)


async def answer_async(**does: Callable[..., Awaitable[Any]]) -> None:
    """The same on an event loop, which stays free while nothing is asked."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        details = json.loads(line)
        try:
            found = {"value": await does[details.pop("do")](**details)}
        except Exception:
            found = {"error": traceback.format_exc()}
        _say(found)


def _say(found: dict[str, Any]) -> None:
    _answers.write(json.dumps(found) + "\n")
    _answers.flush()


def _main(role: str, details: str) -> None:
    # Seen from the roles' modules this file is `bench.roles`, not `__main__`.
    here = importlib.import_module("bench.roles")
    here._answers = os.fdopen(os.dup(1), "w")  # type: ignore[attr-defined]
    os.dup2(2, 1)
    module, _, function = role.rpartition(".")
    getattr(importlib.import_module(f"bench.{module}"), function)(**json.loads(details))
    os._exit(0)  # nothing to save, and no context of another's to wait for


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
