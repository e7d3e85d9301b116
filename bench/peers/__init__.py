"""The product beside what a user would pick instead, in one run on one machine: `bin/bench --peers`.

One peer is one file with one interface: a class that starts the server (`peer.Peer`), and the roles that are
processes of their own: provider, caller, observers, changer, victim, loader, joiner. Every figure is taken in
alternating rounds, so that ratios within a run hold whatever the day was like.

    peer.py        the interface            install.py    an environment of its own for each peer
    lanes.py       a caller's side          watching.py   an observer's side
    runner.py      order, rounds, results   calls.py  registry.py   the measures
    results.py     figures, JSON            document.py  charts.py  docs/benchmarks.md and its pictures
    iii.py nats.py crossbar.py zerorpc.py moleculer.py etcd.py redis.py floors.py    the subjects
    node/          moleculer's roles

The roles run in the peer's environment, where nothing of iii_zmq, pyzmq or rich needs to be: a peer's file, lanes.py
and watching.py import the standard library on top, and the peer's client only inside the roles.
"""
