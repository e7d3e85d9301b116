"""serve: runs the broker in this process and prints one line that says where it listens."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import signal
import sys

from ..io import memory
from ..io.addresses import AddressInUse
from ..io.broker import Broker
from .exits import CommandError, Exit, usage

LOG_LEVELS = ("debug", "info", "warning", "error")
HEARTBEAT_MIN_S = 0.01
TTL_MAX_S = 6500.0  # ZMTP sends it in tenths of a second, in 16 bits


def serve(url: str, stream_url: str | None, *, heartbeat_s: float, ttl_s: float, log_level: str, as_json: bool) -> None:
    """Serves until SIGINT or SIGTERM. Raises: CommandError."""
    _check(heartbeat_s, ttl_s, log_level)
    logging.basicConfig(level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    memory.keep_in_broker()
    try:
        broker = Broker(url, stream_url, heartbeat_s=heartbeat_s, ttl_s=ttl_s)
    except ValueError as error:
        raise usage(str(error)) from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: broker.stop())
    _bind(broker)
    _warn_if_others_reach(broker.url, broker.stream_url)
    _announce(broker, as_json)
    broker.run()


def _check(heartbeat_s: float, ttl_s: float, log_level: str) -> None:
    if log_level.lower() not in LOG_LEVELS:
        raise usage(f"log level {log_level!r}; expected {', '.join(LOG_LEVELS)}")
    if not (math.isfinite(heartbeat_s) and heartbeat_s >= HEARTBEAT_MIN_S):
        raise usage(f"a heartbeat of {heartbeat_s} s; expected {HEARTBEAT_MIN_S} or more")
    if not heartbeat_s < ttl_s <= TTL_MAX_S:
        raise usage(f"a ttl of {ttl_s} s; expected more than the heartbeat ({heartbeat_s}), at most {TTL_MAX_S:g}")


def _bind(broker: Broker) -> None:
    try:
        broker.bind()
    except (ValueError, OSError) as error:
        broker.close()
        if isinstance(error, AddressInUse):
            raise CommandError(Exit.REFUSED, "address_in_use", str(error)) from error
        if isinstance(error, ValueError):
            raise usage(str(error)) from error
        raise CommandError(Exit.REFUSED, "not_served", f"can't serve {broker.url}: {error.strerror}") from error


def _warn_if_others_reach(*urls: str) -> None:
    exposed = [url for url in urls if not is_local(url)]
    if exposed:
        text = f"{exposed[0]} is open to the network and not encrypted: anyone who reaches it can call and register"
        print(f"warning: {text}", file=sys.stderr, flush=True)


def is_local(url: str) -> bool:
    """True if only this machine can reach the address."""
    if not url.startswith("tcp://"):
        return True
    host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(broker: Broker, as_json: bool) -> None:
    if as_json:
        line = {"event": "listening", "url": broker.url, "stream_url": broker.stream_url, "epoch": broker.epoch}
        print(json.dumps({**line, "pid": os.getpid()}), flush=True)
    else:
        print(f"listening on {broker.url} stream {broker.stream_url} epoch {broker.epoch}", flush=True)
