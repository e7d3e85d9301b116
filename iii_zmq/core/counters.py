"""The counters of both sides and the gauges, by name, each with its meaning.

docs/protocol.md has the same sentences; a test compares them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

Counters = dict[str, int]

# Shown by `engine::status`, from zero at the broker's start.
BROKER_COUNTERS: Final = {
    "hellos": "Hellos, including refused ones",
    "renewals": "Hellos that renewed the stream of a session on the same connection",
    "kept": "sessions that came back on another connection and kept their rows",
    "joined": "presences heard, including renewals",
    "left_bye": "workers that left on purpose",
    "left_died": "workers dropped because their connections were gone",
    "left_silent": "workers dropped because nothing had been heard from them",
    "left_replaced": "workers that came back and had to start again",
    "registered": "functions accepted",
    "unregistered": "functions unregistered",
    "refused": (
        "messages refused as a whole, malformed ones that were answered, functions refused in a batch, and calls "
        "refused as `invalid`"
    ),
    "malformed": "messages that were malformed, of another version or of an unknown kind, and were dropped",
    "unexpected": (
        "messages that make no sense here: kinds that only a broker sends, the number of an open call, a Received "
        "for nothing that was sent"
    ),
    "unknown_peers": "messages other than Hello from connections without a session",
    "presence_lost": "times that a joined session's presence ended",
    "probes": "Probes sent",
    "pauses": "times that the broker itself slept for more than half a TTL",
    "stalled": "times that a client became stalled",
    "never_present": "sessions dropped because their presence did not come",
    "overflows": "messages not sent because the client's queue was full; it is reset",
    "undelivered": "messages not sent because the client's connection was gone",
    "resumes": "answers with deltas only",
    "snapshots": "answers with a snapshot of their own",
    "broadcasts": "snapshots that were broadcast",
    "answers_abandoned": "answers given up because no Received came",
    "syncs_gap": "Syncs because of a missing delta",
    "syncs_digest": "Syncs because of a digest that differed",
    "syncs_overrun": "Syncs because too many messages waited unread",
    "syncs_late": "Syncs because an answer did not come",
    "calls": "calls from clients, including those of engine functions",
    "calls_queued": "calls that had to wait for a provider",
    "calls_busy": "calls failed as `busy`",
    "calls_no_provider": "calls failed as `no_provider`",
    "calls_timeout": "calls that timed out",
    "calls_provider_lost": "calls failed as `provider_lost`",
    "calls_rerouted": "calls given to another provider",
    "calls_cancelled": "calls that their caller gave up",
    "results": "results passed on",
    "failures": "accepted calls that ended in a failure",
    "results_late": "outcomes that came when nobody waited any more",
    "results_unmatched": "outcomes of calls that this worker was not running",
    "results_unread": "large results dropped because their caller had too many unacknowledged ones",
    "forged": "calls that named another worker as their caller",
    "saturated": "times that the calls in flight to one worker reached IN_FLIGHT_BYTES_MAX",
    "payloads_let_go": (
        "large payloads of idempotent functions that were not kept for another try, because too many were kept already"
    ),
}

# Measured by the broker's shell, shown beside its counters.
BROKER_GAUGES: Final = {
    "turn_max_ms": "the longest turn of the broker's loop since its start",
    "turn_recent_max_ms": "the longest turn of the last 5 to 10 s",
    "strangers": (
        "connections to either socket that never completed a ZMTP 3 handshake (another protocol, a wrong "
        "mechanism or kind of socket, silence, a port scan; for a moment also connections that are about to)"
    ),
    "descriptors_lacking": "how often no descriptor was free, checked twice a second",
}

# Shown by `Worker.counters`: everything that a worker and its replica count.
WORKER_COUNTERS: Final = {
    "connects": "times that fresh sockets were made",
    "handshakes_failed": (
        "connections that ended before the handshake was complete: the other program is not a broker, or refuses us"
    ),
    "sessions": "Welcomes",
    "sessions_unknown": "Unknowns: the broker had no session for us",
    "streams_lost": "times that the stream's connection ended and the session was renewed",
    "streams_failed": "times that the stream's connection ended before our presence was heard, and was retried",
    "streams_silent": "times that the stream was silent for three heartbeats and the session was renewed",
    "streams_discarded": "times that more than 10,000 stream messages waited unread and were discarded",
    "deltas": "deltas applied",
    "stale_ignored": "deltas, beacons and parts that were already known or not awaited",
    "gaps": "times that a delta was found missing",
    "overruns": "times that too much was discarded or held back, so that the replica had to sync",
    "digest_mismatches": "times that the replica's digest was not the broker's",
    "foreign_epochs": "times that the stream was of another run of the broker",
    "snapshots": "snapshots put in place",
    "resumes": "answers with deltas only",
    "snapshots_refused": "snapshots that were older than the replica",
    "broken_answers": "answers with a malformed or impossible part",
    "parts_late": "parts and invitations that were no longer awaited",
    "syncs_gap": "Syncs because of a missing delta",
    "syncs_digest": "Syncs because of a digest that differed",
    "syncs_overrun": "Syncs because too much was discarded or held back",
    "syncs_late": "Syncs because an answer did not come",
    "calls_refused": "calls and sends refused at once as `busy`: too many are open, or too many sends are unread",
    "calls_given_up": "calls whose caller gave up",
    "calls_expired": "calls that ended 30 ms after their deadline without an answer from the broker",
    "calls_broker_lost": "calls failed as `broker_lost`",
    "sends_failed": "sends that nobody was handed, as far as that is known",
    "answers_late": "outcomes that came when nobody waited any more",
    "results_orphaned": "outcomes of calls that this worker ran for a session that had ended",
    "unexpected": "messages that make no sense here",
    "malformed": "messages that were malformed",
    "readers_reset": "times that a reader of `changes()` or a callback fell too far behind and was told so by `reset`",
}


def new_counters(names: Iterable[str] = ()) -> Counters:
    """Counters with these names at zero; others start when they are first counted.

    Not a collections.Counter, which is written in Python and takes twice as long to add one: each call adds two.
    """
    return defaultdict(int, dict.fromkeys(names, 0))
