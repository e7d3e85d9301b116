"""What the soak's processes write down: one JSON object a line, each line one write to the file.

Invariant: a line is in the kernel's hands before the act that it announces begins, and after the act that it reports
has happened. So SIGKILL loses nothing that was written, and what a missing line means is told here:

    announced, not reported     the act may or may not have happened; so it is for the process's last acts
    neither                     it had not begun

A line that a kill cut short (the kernel may stop between two pages) has no line feed, is the last, and is not counted.

    file                        what          fields, beside `at` (seconds of the machine's monotonic clock)
    director.jsonl              run           seed, workers, seconds
                                started       process, ends; process is the name of a file below
                                ended         process, status, meant: whether the director ended it
                                fault         kind, processes
                                stopped       process; SIGSTOP. continued: SIGCONT
                                trouble       process, text: a traceback on stderr, or one that did not answer
                                settled       workers: everybody is whole again after the faults. unsettled: text
    broker.N.jsonl              serving       epoch
                                delta         epoch, seq, digest, reason, puts, drops; before it is published
                                handed        epoch, function, fence: a call of an exclusive function leaves
                                closing       counters: the broker's own, after SIGTERM
    host.SLOT.LIFE.jsonl        state         worker, state, id: of the session
                                joining       worker, functions; before. joined: worker, epoch, seq; after
                                registering   worker, functions; registered | refused: worker, functions
                                unregistering worker, functions; unregistered: worker, functions
                                calling       call, worker, function, timeout, idempotent, must
                                ended_call    call, ok, answer | fate, code
                                sending       call, worker, function: no answer wanted
                                running       call, worker, function, epoch, fence; the handler's first act
                                heard         worker, change: [epoch, seq, kind, function, id, name, reason, left]
                                level         worker, id, epoch, seq, digest: the registry as it is at the end
                                standing      worker, epoch, seq: the same for an observer, named o3.2, who has no row
                                leaving       worker; before its drain or close. left: worker
                                trouble       worker, text: an exception that no fault explains

A `worker` here is one Worker object: its slot's name and the life of its process, such as w07.2, which is also its name
in the registry. Session ids are the broker's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


class Recorder:
    """Appends records to one file. Any thread may write: a line is one system call."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, what: str, **fields: Any) -> None:
        line = _encode({"what": what, "at": round(time.monotonic(), 6), **fields}).encode() + b"\n"
        written = os.write(self._file, line)
        assert written == len(line), "the disk is full"


def read(path: Path) -> Iterator[Record]:
    """The records of one file, in the order in which they were written."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            record = json.loads(line)
            assert isinstance(record, dict)
            yield record
