"""`iii-broker demo`: runs a broker and several of the examples, each in its own process, and checks every notice.

    script    the demo, step by step                stage     inside a child: the example, watched and prompted
    cast      the children and their reports        verdict   checks that nobody missed anything
                                                    narration what people and programs see

Invariant: all children are ended whatever happens. None outlives this process: a child ends when its stdin closes.
"""

from .script import play

__all__ = ["play"]
