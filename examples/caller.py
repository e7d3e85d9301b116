"""A caller: calls a function by its name, wherever it runs. Start worker.py before or after it."""

from iii_zmq import CallFailed, Worker

with Worker("orders") as worker:
    worker.wait_for("payments::charge", timeout=10)
    print(worker.call("payments::charge", {"amount": 10}, timeout=2.0))

    # Futures make many calls at once.
    futures = [worker.submit("payments::charge", {"amount": amount}) for amount in range(100)]
    print(sum(future.result()["charged"] for future in futures))

    # A failed call has a fate: it says whether a handler can have seen the call.
    try:
        worker.call("payments::charge", {"price": 10})
    except CallFailed as failure:
        print(f"{failure.fate}: {failure}")
    try:
        worker.call("payments::no-such-function")
    except CallFailed as failure:
        print(f"{failure.fate}: {failure.code}")
