"""watch: prints where it starts, then one line for every change, past or live.

Invariant: no change is printed twice and none is left out. The observer joins first, at position Q. Then it fetches the
past up to P >= Q, and goes on with the changes that it hears after P.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..core.worker.changes import Change, Position
from ..core.worker.events import CLOSED
from .client import CONNECT_TIMEOUT_S, joined
from .exits import one_line, usage

if TYPE_CHECKING:
    from ..core.worker.replica import Replica
    from ..io.worker.sync_worker import Worker
    from .change_lines import Present


def watch(
    url: str | None,
    patterns: tuple[str, ...],
    start: str | None,
    count: int | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Watches until Ctrl-C, SIGTERM, `count` changes or `timeout` seconds. Raises: CommandError, IIIError."""
    asked = None if start is None else read_position(start)
    until = None if timeout is None else time.monotonic() + timeout
    lines = _Lines(as_json)
    try:
        with joined(url, timeout) as worker:
            lines.follow_states(worker)
            changes = _changes(worker, url, asked, until, lines)
            wanted = (change for change in changes if is_wanted(change, patterns))
            for change in wanted if count is None else _first(count, wanted, worker):
                lines.tell(worker, change)
    except KeyboardInterrupt:
        pass  # the usual way to stop it


def read_position(text: str) -> Position:
    """Reads SEQ or EPOCH:SEQ; without an epoch it means the broker's current one. Raises: CommandError."""
    epoch, _, seq = text.rpartition(":")
    if not (seq.isascii() and seq.isdigit()) or (":" in text and not epoch):
        raise usage(f"--from {text!r} is not a position; expected SEQ or EPOCH:SEQ")
    return Position(epoch, int(seq))


def is_wanted(change: Change, patterns: tuple[str, ...]) -> bool:
    """True for every change without patterns; else for functions whose id matches one, and for resets."""
    if not patterns or "*" in patterns or change.kind == "reset":
        return True
    return change.function_id is not None and any(fnmatchcase(change.function_id, pattern) for pattern in patterns)


# -- private -----------------------------------------------------------------------------------------------------------


def _first(count: int, changes: Iterator[Change], worker: Worker) -> Iterator[Change]:
    """The changes of the first `count` positions, so that `--from` with the last of them misses nothing.

    Only the next position would show that a position is complete. But changes that happened together reach a reader
    together, and the reader of a closed worker still returns what it has. So the first change of the last position
    closes the worker.
    """
    if not count:
        return
    position: tuple[str, int] | None = None
    for change in changes:
        if (change.epoch, change.seq) != position:
            if not count:
                return
            count, position = count - 1, (change.epoch, change.seq)
            if not count:
                worker.close()
        yield change


def _changes(
    worker: Worker, url: str | None, asked: Position | None, until: float | None, lines: _Lines
) -> Iterator[Change]:
    """Prints the start, then yields the changes since, past and live."""
    live = worker.changes(timeout=None if until is None else max(0.0, until - time.monotonic()))
    at = worker.position
    past = None if asked is None else _past(worker, url, asked)
    if asked is None or past is None:
        lines.start("snapshot", worker, at)
    else:
        lines.start("resumed", worker, at._replace(seq=asked.seq))
        yield from past
        at = at._replace(seq=max(at.seq, *[change.seq for change in past[-1:]], asked.seq))
    if worker.state == CLOSED:
        return
    for change in live:
        if change.epoch != at.epoch or change.seq > at.seq:
            yield change


def _past(worker: Worker, url: str | None, asked: Position) -> list[Change] | None:
    """The changes from that position until now; None if the broker no longer holds them."""
    from .change_lines import leaves_doubt, retell
    from .history import fetch_past

    epoch = worker.position.epoch
    if asked.epoch not in ("", epoch):
        return None
    past = fetch_past(url, Position(epoch, asked.seq), CONNECT_TIMEOUT_S)
    if past is None:
        return None
    if leaves_doubt(past.deltas, past.digest):
        past = fetch_past(url, Position(epoch, 0), CONNECT_TIMEOUT_S) or past
    told = retell(epoch, past.deltas, past.digest, _present(worker.replica))
    return [change for change in told if change.seq > asked.seq]


def _present(replica: Replica) -> Present:
    """The workers' names and the functions' numbers of providers, all at one position."""
    from .change_lines import Present

    while True:
        seq = replica.position.seq
        names = {id: worker.name for id, worker in replica.workers.items()}
        providers = {id: replica.provider_count(id) for id in replica.functions}
        if replica.position.seq == seq:
            return Present(seq, names, providers)


class _Lines:
    """Prints one line per change: a JSON object for programs, a sentence for people."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        if not as_json:
            from .tables import console

            self._console = console()

    def start(self, start: str, worker: Worker, at: Position) -> None:
        if self._as_json:
            self._print_json({"start": start, "position": at._asdict()})
            return
        from .tables import count_of

        size = f"{count_of(worker.workers, 'worker')}, {count_of(worker.functions, 'function')} now"
        self._print(f"{start} at {at.epoch}:{at.seq} ({size})", "dim")

    def tell(self, worker: Worker, change: Change) -> None:
        if self._as_json:
            self._print_json(change.to_json())
        else:
            from .tables import SIGNS

            row = worker.workers.get(change.worker_id or "") if change.kind == "worker_changed" else None
            state = f", {row.state} now" if row is not None else ""
            self._print(f"{change}{state}", SIGNS[change.kind][1])

    def follow_states(self, worker: Worker) -> None:
        """Tells people when the broker is lost and when it is back; programs see a `reset`, or silence."""
        if not self._as_json:
            worker.on_state(self._tell_state)

    def _tell_state(self, state: str) -> None:
        text = {"connecting": "the broker is lost; trying again", "connected": "the broker is back"}.get(state)
        if text is not None:
            print(f"iii-broker: {text}", file=sys.stderr, flush=True)

    def _print_json(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(one_line(text), style=style))
        sys.stdout.flush()
