"""Makes a process keep freed memory, because the next large payloads need it again.

Otherwise they need fresh pages, which cost 2 us or more each, 250 for 1 MB. glibc gives back the free end of a heap if
it exceeds a threshold: 128 KiB, or twice the largest block that it had mapped and saw freed, of up to 32 MiB. Any other
libc is left alone, and so is glibc if the user has decided, by MALLOC_TRIM_THRESHOLD_ or mallopt.
"""

from __future__ import annotations

import ctypes
import os

from .. import wire

BROKER_FREE_BYTES_KEPT = 256 * 1024 * 1024
FREE_BYTES_KEPT = 64 * 1024 * 1024  # per heap of a process with workers: twice the largest block that counts
_PAGES = 8192  # for the block's head, and for rounding to pages
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENAS = -1, -3, -8  # malloc.h; the last is M_ARENA_MAX there

_is_shown = False


def keep_in_broker() -> None:
    """Call it once, in a process that is a broker and nothing else.

    Uses one arena, because glibc unmaps those of other threads, such as libzmq's, in pieces of 64 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_M_ARENAS, 1)
        mallopt(_M_MMAP_THRESHOLD, wire.PAYLOAD_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, BROKER_FREE_BYTES_KEPT)


def keep() -> None:
    """Call it for each large payload, in a process that belongs to the user.

    Shows glibc, once, the largest block that it learns from, as any program does that frees an array of 32 MB. The
    block is mapped and unmapped again; its pages are never touched.
    """
    global _is_shown
    if not _is_shown:
        _is_shown = True
        try:
            bytes(FREE_BYTES_KEPT // 2 - _PAGES)
        except MemoryError:  # the user limits the address space
            pass
