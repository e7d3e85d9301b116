"""`iii-broker demo`: a broker and some of the examples, each a process of its own, whose every notice is looked at.

    script    what happens, step by step            stage     inside a child: the example, watched and prompted
    cast      the children and what they report     verdict   whether anybody missed anything
                                                    telling   what people and programs are shown

Invariant: all children are ended whatever happens, and none outlives this process: a child ends when its stdin does.
"""

from .script import play

__all__ = ["play"]
