"""The ledger: a cluster of real processes under random faults writes down all that happens, and a checker reads it.

    python -m tests.soak            bin/soak: the director starts everything, injects faults, and asks the checker
    python -m tests.soak.broker     a broker that writes down each delta that its registry commits
    python -m tests.soak.host       one process with a few workers: they call, serve, register and listen
    python -m tests.soak.check DIR  the checker: reads the records in DIR and nothing else, and prints its verdict

records.py tells what is written; rules/ has a file for each kind of promise. No rule imports anything of iii_zmq.
"""
