"""Watches the registry: prints its size, then every change as it happens, until Ctrl-C or SIGTERM.

An observer joins, but does not show up in the registry itself.
"""

from iii_zmq import Change, Worker

watcher = Worker("watcher", observer=True)


@watcher.on_state
def show_state(state: str) -> None:
    print(f"{state}: {len(watcher.functions)} functions of {len(watcher.workers)} workers", flush=True)


@watcher.on_change("*")  # or, say, "payments::*"
def show_change(change: Change) -> None:
    print(change, flush=True)


watcher.run()
