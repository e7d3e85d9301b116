"""Benchmarks: what the product costs, beside what bare ZeroMQ costs, in one run.

    python -m bench [call|fanout|join|crowd|silence|churn ...] [--mode pinned|free|both]
                    [--quick] [--floors] [--seconds N] [--json FILE]

Every figure is measured in alternating rounds with its *floor*: the same job done by bare
pyzmq with nothing of iii_zmq in it. Machines differ and so do minutes on one machine, so the
ratio within a run is what to compare; the absolute figures only say how the day was.

    processes.py   children: start, pin, ask, end        roles.py     the child's side of that
    measure.py     clocks, percentiles, rounds           report.py    rows, table, JSON
    floors.py      roles in bare pyzmq                   workers.py   roles on the product
    calls.py       call                                  stream.py    fanout, join
    scenarios.py   crowd, silence, churn                 crews.py     asking many workers
    settings.py    what was asked for                    __main__.py  arguments and order
    peers/         beside NATS, Crossbar and others: `--peers`, with arguments of its own

The parent process holds no sockets and never imports the product: it starts children, tells
them what to do over their standard input, and reads one JSON line back.
"""
