"""One process of the soak: a few workers with one of the two faces, and orders from the director on stdin.

    {"do":"hog","for":S}                 hold the interpreter for so long: nothing of Python runs here
    {"do":"slow","member":I,"take":S,"for":S}    the listener of one worker takes so long for each change
    {"do":"flood","member":I,"count":N}  one worker registers and unregisters as fast as it goes
    {"do":"calm"}                        end all acts of our own
    {"do":"tell"}                        answered by one line on stdout: where each worker stands
    {"do":"finish"}                      the last calls, which must succeed; answered by {"finished":true}
    {"do":"leave","must":B}              drain all workers, and end; must: it can't fail, for nothing disturbs it

The end of stdin means that the director is gone: so are we.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .async_member import AsyncMember, run_on
from .member import Member, Watcher
from .plan import Will, slot_name
from .processes import die_with_parent
from .records import Recorder

ORDER_S = 120.0  # for the longest order, `finish`: far more than its calls may take


class Threads:
    """Members with the plain face, and an observer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._members = [Member(*each) for each in _members(options)]
        self._watcher = Watcher(f"o{options.slot}.{options.life}", options.url, Recorder(options.records))
        self._workers: int = options.workers

    def begin(self) -> None:
        self._watcher.begin()
        for member in self._members:
            member.begin()

    def calm(self) -> None:
        for member in self._members:
            member.calm()

    def slow(self, number: int, take: float, seconds: float) -> None:
        self._members[number].deeds.slow_down(take, seconds)

    def flood(self, number: int, count: int) -> None:
        self._members[number].flood(count)

    def tell(self) -> list[dict[str, Any]]:
        return [member.tell() for member in self._members]

    def finish(self) -> None:
        self._watcher.finish()
        self._each(lambda member: member.finish(self._workers))

    def leave(self, must: bool) -> None:
        self._watcher.leave()
        self._each(lambda member: member.leave(must=must))

    def _each(self, act: Any) -> None:
        threads = [threading.Thread(target=act, args=(member,)) for member in self._members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ORDER_S)


class OneLoop:
    """Members with the face for event loops, on one loop in a thread of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._loop = asyncio.new_event_loop()
        run_on(self._loop)
        self._workers: int = options.workers
        self._members = self._do(lambda: [AsyncMember(*each) for each in _members(options)])

    def begin(self) -> None:
        self._do(lambda: [member.begin() for member in self._members])

    def calm(self) -> None:
        self._do(lambda: [member.calm() for member in self._members])

    def slow(self, number: int, take: float, seconds: float) -> None:
        self._do(lambda: self._members[number].deeds.slow_down(take, seconds))

    def flood(self, number: int, count: int) -> None:
        self._do(lambda: self._members[number].flood(count))

    def tell(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self._do(lambda: [member.tell() for member in self._members])
        return told

    def finish(self) -> None:
        self._await(lambda: [member.finish(self._workers) for member in self._members])

    def leave(self, must: bool) -> None:
        self._await(lambda: [member.leave(must=must) for member in self._members])

    def _do(self, act: Any) -> Any:
        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(ORDER_S)

    def _await(self, acts: Any) -> None:
        async def run() -> None:
            await asyncio.gather(*acts())

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(ORDER_S)


def main() -> None:
    die_with_parent()
    options = _options()
    logging.basicConfig(level="WARNING", stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    host: Threads | OneLoop = OneLoop(options) if options.slot % 2 else Threads(options)
    host.begin()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "leave":
            host.leave(order["must"])
            _say({"left": True})
            os._exit(0)  # a handler that still naps is not waited for
        _obey(host, order)
    os._exit(1)


def _obey(host: Threads | OneLoop, order: dict[str, Any]) -> None:
    match order["do"]:
        case "hog":
            ctypes.PyDLL(None).usleep(int(order["for"] * 1e6))  # unlike CDLL, PyDLL keeps the interpreter's lock
        case "slow":
            host.slow(order["member"], order["take"], order["for"])
        case "flood":
            host.flood(order["member"], order["count"])
        case "calm":
            host.calm()
        case "tell":
            _say({"workers": host.tell()})
        case "finish":
            host.finish()
            _say({"finished": True})
        case unknown:
            raise AssertionError(f"no such order: {unknown}")


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _members(options: argparse.Namespace) -> list[tuple[str, int, str, Will, Recorder]]:
    recorder = Recorder(options.records)
    first = options.slot * options.members
    members = []
    for index in range(first, min(first + options.members, options.workers)):
        name = f"{slot_name(index)}.{options.life}"
        members.append((name, index, options.url, Will(options.workers, index, f"{options.seed} {name}"), recorder))
    return members


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slot", type=int, required=True, help="even: threads; odd: an event loop")
    parser.add_argument("--life", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True, help="of the whole soak")
    parser.add_argument("--members", type=int, required=True, help="of each process")
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--records", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
