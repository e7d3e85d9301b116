"""A fuzzer of every entry point: mutates inputs, keeps those that reach lines of code which none before had reached.

    bin/fuzz                          all entry points in turn, until Ctrl-C
    bin/fuzz decode --seconds 60      one of them, for a minute
    bin/fuzz decode --input 693301    one input, as a failure was reported

One input is bytes. Entry points that take messages in an order read the bytes as a program: see `Source`. A run is the
same for the same seed, but for `shell`, where a real broker has its own timing. A failure is made as small as it goes,
printed with its traceback and the command that repeats it, and is exit status 1.

Steps from line to line are seen with `sys.settrace`: slow, but there is nothing to install. atheris, which would make
more runs a second, is 35 MB of native code.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from types import FrameType
from typing import Any

CORPUS_MAX = 2_000  # inputs that are kept; then a random one makes room
INPUT_BYTES_MAX = 4_096  # an input's length; a longer one is cut
SHRINKS_MAX = 2_000  # tries to make a failure smaller
SLICE_S = 5.0  # of one entry point, before it is the next one's turn

_PACKAGE = f"{Path(__file__).resolve().parents[2] / 'iii_zmq'}{os.sep}"
_WORDS = [
    b"i3\x01", b"i3\x02", b"\x00\x00\x00\x10", b"\xff\xff\xff\xff", bytes(8), b"\xc0", b"\xc1", b"\xc2", b"\xc3",
    b"\x80", b"\x90", b"\x91", b"\x96", b"\x97", b"\xa0", b"\xa1f", b"\xc4\x00", b"\xc4\x10" + bytes(16), b"\xd9\xff",
    b"\xcf" + b"\xff" * 8, b"\xda", b"\xdc\xff\xff", b"\xdd", b"\xde\x00\x01", b"\xdf", b"\xd6\xff" + bytes(4),
    b"\x91" * 200, b"\xca\x7f\xc0\x00\x00", b"{", b"[" * 100, b'"', b"$bytes", b"=", b"\\ud800", b"1e999", b"NaN",
    b"s|", b"t|", b"w|", b"engine::",
]  # fmt: skip

Run = Callable[[bytes], None]


@dataclass(slots=True)
class EntryPoint:
    """`run` raises for what must not happen, and for nothing else. `close` ends what it has started."""

    name: str
    run: Run
    seeds: list[bytes]
    close: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Failure(Exception):
    """What the fuzzer has found: the smallest input that it could find for it."""

    entry: str
    data: bytes
    report: str


class Source:
    """An input read as a program: choices and values, one after another. At its end all choices are the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def choose(self, values: Any) -> Any:
        return values[self.byte() % len(values)]


@dataclass(slots=True)
class Fuzzer:
    """One entry point, its corpus, and the lines that were reached."""

    entry: EntryPoint
    random: Random
    corpus: list[bytes] = field(default_factory=list)
    reached: set[tuple[str, int, int]] = field(default_factory=set)
    runs: int = 0

    def fuzz(self, seconds: float, runs_max: int | None = None) -> None:
        """Raises: Failure."""
        end = time.monotonic() + seconds
        for seed in self.entry.seeds if not self.runs else ():
            self._try(seed)
        before = self.runs
        while time.monotonic() < end and (runs_max is None or self.runs - before < runs_max):
            self._try(self._mutated())

    def _try(self, data: bytes) -> None:
        self.runs += 1
        lines: set[tuple[str, int, int]] = set()
        error = _traced(self.entry.run, data, lines)
        if error is not None:
            raise Failure(self.entry.name, *self._shrunk(data, error))
        if not lines <= self.reached:
            self.reached |= lines
            if len(self.corpus) >= CORPUS_MAX:
                self.corpus.pop(self.random.randrange(CORPUS_MAX))
            self.corpus.append(data)

    # -- mutations -----------------------------------------------------------------------------------------------------

    def _mutated(self) -> bytes:
        random = self.random
        data = bytearray(random.choice(self.corpus) if self.corpus else b"")
        for _ in range(1 + random.randrange(4)):
            random.choice((_flip, _overwrite, _insert, _insert_word, _delete, _repeat))(data, random)
        if self.corpus and random.random() < 0.2:
            other = random.choice(self.corpus)
            data[random.randrange(len(data) + 1) :] = other[random.randrange(len(other) + 1) :]
        return bytes(data[:INPUT_BYTES_MAX])

    # -- a failure -----------------------------------------------------------------------------------------------------

    def _shrunk(self, data: bytes, error: BaseException) -> tuple[bytes, str]:
        """Ever smaller pieces are left out, as long as the same kind of error comes; then bytes become zero."""
        best, tries, size = (data, error), 0, max(1, len(data) // 2)
        while tries < SHRINKS_MAX:
            shorter = False
            for at in range(0, len(best[0]), size):
                tries += 1
                attempt = best[0][:at] + best[0][at + size :]
                failed = _traced(self.entry.run, attempt, None)
                if type(failed) is type(error):
                    best, shorter = (attempt, failed), True
                    break
            if not shorter:
                if size == 1:
                    break
                size = max(1, size // 2)
        return best[0], "".join(traceback.format_exception(best[1]))


def _flip(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 16, 127, 128, 255, random.randrange(256)))


def _insert(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(1 + random.randrange(8))


def _insert_word(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(_WORDS)


def _delete(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    del data[at : at + 1 + random.randrange(16)]


def _repeat(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = data[at : at + 1 + random.randrange(32)]


def _traced(run: Run, data: bytes, lines: set[tuple[str, int, int]] | None) -> BaseException | None:
    """What it raised; the steps from line to line inside the package are added to `lines`."""
    before = sys.gettrace()
    if lines is not None:
        sys.settrace(_tracer(lines))
    try:
        run(data)
    except Exception as error:
        return error
    finally:
        sys.settrace(before)
    return None


def _tracer(lines: set[tuple[str, int, int]]) -> Any:
    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE):
            return None
        last = frame.f_lineno

        def on_line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                lines.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return on_line

        return on_line

    return on_call


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None, given: dict[str, Callable[[], EntryPoint]] | None = None) -> int:
    """The exit status. Raises: SystemExit for wrong usage."""
    from tests.fault.entrypoints import ENTRIES  # which needs the classes above

    entries = ENTRIES if given is None else given
    parser = argparse.ArgumentParser(prog="bin/fuzz", description="Fuzzes the entry points, guided by coverage.")
    parser.add_argument("entry", nargs="?", choices=list(entries), help="one of them; without it, all in turn")
    parser.add_argument("--seconds", type=float, help="in all, and each once at least; without it, until Ctrl-C")
    parser.add_argument("--seed", type=int, help="repeats a run")
    parser.add_argument("--input", metavar="HEX", help="runs this one input and nothing else")
    options = parser.parse_args(arguments)
    chosen = [made() for name, made in entries.items() if options.entry in (None, name)]
    try:
        if options.input is not None:
            if options.entry is None:
                parser.error("--input needs an ENTRY")
            return _run_one(chosen[0], bytes.fromhex(options.input))
        return _fuzz_all(chosen, options.seconds, options.seed)
    except KeyboardInterrupt:
        return 0
    finally:
        for entry in chosen:
            entry.close()


def _run_one(entry: EntryPoint, data: bytes) -> int:
    error = _traced(entry.run, data, None)
    print("nothing failed" if error is None else "".join(traceback.format_exception(error)))
    return int(error is not None)


def _fuzz_all(entries: list[EntryPoint], seconds: float | None, seed: int | None) -> int:
    seed = SystemRandom().randrange(10**9) if seed is None else seed
    print(f"seed {seed}", flush=True)
    fuzzers = [Fuzzer(entry, Random(f"{seed} {entry.name}")) for entry in entries]
    slice_s = SLICE_S if seconds is None else min(SLICE_S, seconds / len(fuzzers))
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        for fuzzer in fuzzers:
            try:
                fuzzer.fuzz(slice_s)
            except Failure as failure:
                _report(failure, seed)
                return 1
            told = f"{fuzzer.runs} runs, {len(fuzzer.corpus)} inputs kept, {len(fuzzer.reached)} steps reached"
            print(f"{fuzzer.entry.name}: {told}", flush=True)
        if end is not None and time.monotonic() >= end:
            return 0


def _report(failure: Failure, seed: int) -> None:
    print(f"{failure.report}\nseed {seed}: {failure.entry} fails on {len(failure.data)} bytes: {failure.data!r}")
    print(f"again: bin/fuzz {failure.entry} --input {failure.data.hex()}" if failure.data else "on no input at all")


if __name__ == "__main__":
    sys.exit(main())
