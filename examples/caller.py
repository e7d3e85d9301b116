"""A caller: calls a function by its name, wherever it runs. Needs worker.py, whenever it is started."""

from iii_zmq import CallFailed, Worker

with Worker("orders") as worker:
    worker.wait_for("payments::charge", timeout=10)
    print(worker.call("payments::charge", {"amount": 10}, timeout=2.0))

    # Many calls at once: futures.
    futures = [worker.submit("payments::charge", {"amount": amount}) for amount in range(100)]
    print(sum(future.result()["charged"] for future in futures))

    # A failed call tells its fate: can a handler have seen it?
    try:
        worker.call("payments::charge", {"price": 10})
    except CallFailed as failure:
        print(f"{failure.fate}: {failure}")
    try:
        worker.call("payments::no-such-function")
    except CallFailed as failure:
        print(f"{failure.fate}: {failure.code}")
