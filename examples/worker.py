"""A worker: offers functions until Ctrl-C or SIGTERM; then it finishes the running calls and leaves.

Start a broker first (`iii-broker`). If it is not at this machine's default address, set III_URL.
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
