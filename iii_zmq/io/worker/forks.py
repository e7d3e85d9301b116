"""How many forks this process is away from the one that was started.

Whoever remembers the number sees by it that it is in a child: sockets, threads and locks are the parent's there.
"""

from __future__ import annotations

import os
from typing import Final


class Forks:
    """`count`, in a class because each call reads it: compiled code finds a variable of a module slowly."""

    def __init__(self) -> None:
        self.count = 0

    def forked(self) -> None:
        """In the child."""
        self.count += 1


forks: Final = Forks()
os.register_at_fork(after_in_child=forks.forked)
