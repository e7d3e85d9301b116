"""The faults of issue 3, points 1 to 6, that the director does to a running cluster: one method each.

A fault that has an end leaves it with the director (`later`), so that faults overlap. Each picks its victims among the
processes that are up and at large; it returns their names, none if there was none.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.fault.proxy import Proxy

if TYPE_CHECKING:
    from .director import Director, Slot

STOP_MAX_S = 6.0  # three times the TTL
BROKER_STOP_MAX_S = 5.0
DOWN_MAX_S = 2.0
PAUSE_MAX_S = 1.6  # between two faults: most last longer, so that a few go on at any time;
FIRST_PAUSE_MAX_S = 0.7  # less until each kind has come, for short runs
ALONE_PAUSE = 3  # times as long, where all faults meet one process: else it is stopped or busy nearly all the time
HALF_OPEN_S = (0.9, 1.1)  # see issue 3, point 5

WEIGHTS = {
    "kill": 14, "kill_several": 3, "stop": 12, "stop_broker": 4, "stop_both": 2, "kill_broker": 2, "restart_broker": 2,
    "hog": 8, "slow_reader": 6, "flood": 5, "deploy": 7, "swallow": 9, "hold": 3, "cut": 9, "half_open": 6, "refuse": 2,
}  # fmt: skip


class Faults:
    """Each kind once, in any order, then any. Which one comes next follows from the seed, whom it meets does not."""

    def __init__(self, director: Director, random: Random, only: list[str] | None = None) -> None:
        self._director = director
        self._random = random
        self._weights = {kind: weight for kind, weight in WEIGHTS.items() if not only or kind in only}
        self._first = random.sample(list(self._weights), len(self._weights))

    @property
    def is_complete(self) -> bool:
        """Whether each kind has come."""
        return not self._first

    def pause_s(self) -> float:
        pause_s = self._random.uniform(0.1, FIRST_PAUSE_MAX_S if self._first else PAUSE_MAX_S)
        return pause_s * ALONE_PAUSE if len(self._director.slots) == 1 else pause_s

    def inject(self) -> None:
        kinds, weights = list(self._weights), list(self._weights.values())
        kind = self._first.pop() if self._first else self._random.choices(kinds, weights)[0]
        names = getattr(self, kind)()
        if names:
            self._director.note_fault(kind, names)
        else:
            self._first.insert(0, kind)  # nobody was there to meet it

    # -- workers -------------------------------------------------------------------------------------------------------

    def kill(self, number: int = 1) -> list[str]:
        """SIGKILL of a process: idle, calling, serving, whatever it is at."""
        victims = self._victims(number)
        for slot in victims:
            slot.process.kill()
        return [self._director.replace(slot, self._random.uniform(0, DOWN_MAX_S)) for slot in victims]

    def kill_several(self) -> list[str]:
        """20 workers of 100: two processes of ten."""
        return self.kill(2)

    def stop(self) -> list[str]:
        return [self._stop(slot) for slot in self._victims(1)]

    def hog(self) -> list[str]:
        """A handler that holds the interpreter: heartbeats of the program stop, those of libzmq go on."""
        victims = self._victims(1)
        for slot in victims:
            slot.process.order("hog", **{"for": self._random.uniform(0.5, 5.0)})
        return [slot.process.name for slot in victims]

    def slow_reader(self) -> list[str]:
        victims = self._victims(1)
        for slot in victims:
            member, take = self._member(), self._random.uniform(0.01, 0.1)
            slot.process.order("slow", member=member, take=take, **{"for": self._random.uniform(2.0, 8.0)})
        return [slot.process.name for slot in victims]

    def flood(self) -> list[str]:
        """Of changes, by one worker."""
        victims = self._victims(1)
        for slot in victims:
            slot.process.order("flood", member=self._member(), count=self._random.randint(10, 150))
        return [slot.process.name for slot in victims]

    def deploy(self) -> list[str]:
        """Drain, leave, and the next version comes."""
        victims = self._victims(1)
        for slot in victims:
            slot.process.order("leave", must=False)
        return [self._director.replace(slot, 0.0) for slot in victims]

    # -- the broker ----------------------------------------------------------------------------------------------------

    def stop_broker(self) -> list[str]:
        broker = self._director.broker
        if broker.is_away:
            return []
        return [self._stop(broker, BROKER_STOP_MAX_S)]

    def stop_both(self) -> list[str]:
        return self.stop_broker() + self.stop()

    def kill_broker(self) -> list[str]:
        broker = self._director.broker
        if broker.is_away:
            return []
        broker.process.kill()
        return [self._director.replace(broker, self._random.uniform(0, DOWN_MAX_S))]

    def restart_broker(self) -> list[str]:
        broker = self._director.broker
        if broker.is_away:
            return []
        broker.process.terminate()
        return [self._director.replace(broker, self._random.uniform(0, DOWN_MAX_S))]

    # -- links ---------------------------------------------------------------------------------------------------------

    def swallow(self) -> list[str]:
        """One direction or both, one socket or both. No connection outlives it: TCP loses no byte in the middle."""
        up, down = self._random.choice(((True, True), (True, False), (False, True)))

        def mend(proxy: Proxy) -> None:
            proxy.refuse()
            proxy.cut(reset=True)
            proxy.forward()
            proxy.accept()

        return self._disturb(lambda proxy: proxy.blackhole(up=up, down=down), mend, 0.2, STOP_MAX_S)

    def hold(self) -> list[str]:
        return self._disturb(lambda proxy: proxy.hold(), Proxy.forward, 0.2, STOP_MAX_S)

    def refuse(self) -> list[str]:
        def cut_off(proxy: Proxy) -> None:
            proxy.refuse()
            proxy.cut()

        return self._disturb(cut_off, Proxy.accept, 0.2, DOWN_MAX_S)

    def cut(self) -> list[str]:
        is_reset = self._random.random() < 0.5
        return self._disturb(lambda proxy: proxy.cut(reset=is_reset), lambda proxy: None, 0.0, 0.0)

    def half_open(self) -> list[str]:
        cut = self._random.choice((Proxy.cut_worker_side, Proxy.cut_broker_side))
        return self._disturb(lambda proxy: cut(proxy), Proxy.drop_halves, *HALF_OPEN_S)

    # -- private -------------------------------------------------------------------------------------------------------

    def _victims(self, number: int) -> list[Slot]:
        at_large = [slot for slot in self._director.slots if not slot.is_away]
        return self._random.sample(at_large, min(number, len(at_large)))

    def _member(self) -> int:
        return self._random.randrange(self._director.workers_a_process)

    def _stop(self, slot: Slot, longest_s: float = STOP_MAX_S) -> str:
        process = slot.process
        process.stop()
        self._director.later(self._random.uniform(0.2, longest_s), process.go_on)
        return process.name

    def _disturb(
        self, order: Callable[[Proxy], None], undo: Callable[[Proxy], None], least_s: float, most_s: float
    ) -> list[str]:
        links = [link for link in self._director.links if not link.is_disturbed]
        if not links:
            return []
        link = self._random.choice(links)
        proxies = self._random.choice((link.both, link.both, link.both[:1], link.both[1:]))
        for proxy in proxies:
            order(proxy)
        link.is_disturbed = True

        def mend() -> None:
            for proxy in proxies:
                undo(proxy)
            link.is_disturbed = False

        self._director.later(self._random.uniform(least_s, most_s), mend)
        return [link.name]
