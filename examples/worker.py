"""A worker: offers functions to everybody, until Ctrl-C or SIGTERM; then it finishes what runs, and leaves.

Start a broker first (`iii-broker`); III_URL says where it is, unless it is on this machine's default address.
"""

from typing import Any

from iii_zmq import Worker

worker = Worker("payments")


@worker.function("payments::charge", description="Charge a card")
def charge(order: dict[str, Any]) -> dict[str, Any]:
    return {"charged": order["amount"]}


@worker.function("payments::refund", description="Give money back", idempotent=True)
def refund(order: dict[str, Any]) -> dict[str, Any]:
    return {"refunded": order["amount"]}


worker.run()
