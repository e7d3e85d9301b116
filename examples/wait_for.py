"""A script that waits for the functions it needs, so you may start it before, after or together with everything else.

The argument is how many seconds it waits: for the broker, then for the functions.
"""

import sys

from iii_zmq import BrokerUnreachable, WaitTimeout, Worker

NEEDED = ("payments::charge", "orders::create")
timeout = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0

try:
    with Worker("nightly-report", connect_timeout=timeout) as worker:
        worker.wait_for(*NEEDED, timeout=timeout)
        for name in NEEDED:
            providers = [provider.worker_name for provider in worker.functions[name].providers]
            print(f"{name} is offered by {', '.join(providers)}")
except (BrokerUnreachable, WaitTimeout) as error:
    sys.exit(f"gave up after {timeout:g} s: {error}")
