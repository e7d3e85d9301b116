"""What is counted, by name: for each counter of either side what it counts, and for each gauge what it tells.

docs/protocol.md has the same sentences; a test compares them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

Counters = dict[str, int]

# Told by `engine::status`, from zero at the broker's start.
BROKER_COUNTERS: Final = {
    "hellos": "Hellos, refused ones too",
    "renewals": "Hellos that renewed the stream of a session on the same connection",
    "kept": "sessions that came back on another connection and kept their rows",
    "joined": "presences heard, renewals included",
    "left_bye": "workers that left on purpose",
    "left_died": "workers dropped because their connections were gone",
    "left_silent": "workers dropped because nothing had been heard from them",
    "left_replaced": "workers that came back and had to begin anew",
    "registered": "functions accepted",
    "unregistered": "functions taken back",
    "refused": (
        "messages refused as a whole, malformed ones that were answered, functions refused in a batch, and calls "
        "refused as `invalid`"
    ),
    "malformed": "messages that were none, or of another version or an unknown kind, and were dropped",
    "unexpected": (
        "messages that make no sense here: kinds that only a broker sends, a number that is open already, a "
        "Received for nothing that was sent"
    ),
    "unknown_peers": "messages other than Hello from connections without a session",
    "presence_lost": "ends of the presence of a joined session",
    "probes": "Probes sent",
    "pauses": "times that the broker itself slept for more than half a TTL",
    "stalled": "times that a client became stalled",
    "never_present": "sessions dropped because their presence did not come",
    "overflows": "messages not sent because the client's queue was full; it is reset",
    "undelivered": "messages not sent because the client's connection was gone",
    "resumes": "answers with deltas alone",
    "snapshots": "answers with a snapshot of their own",
    "broadcasts": "snapshots that were broadcast",
    "answers_abandoned": "answers given up because no Received came",
    "syncs_gap": "Syncs because of a missing delta",
    "syncs_digest": "Syncs because of a digest that differed",
    "syncs_overrun": "Syncs because too much waited unread",
    "syncs_late": "Syncs because an answer did not come",
    "calls": "calls from clients, those of engine functions included",
    "calls_queued": "calls that had to wait for a provider",
    "calls_busy": "calls failed as `busy`",
    "calls_no_provider": "calls failed as `no_provider`",
    "calls_timeout": "calls whose deadline passed",
    "calls_provider_lost": "calls failed as `provider_lost`",
    "calls_rerouted": "calls given to another provider",
    "calls_cancelled": "calls that their caller gave up",
    "results": "results passed on",
    "failures": "calls that ended in a failure after they had been accepted",
    "results_late": "outcomes that nobody waited for any more",
    "results_unmatched": "outcomes of calls that this worker was not running",
    "results_unread": "large results dropped because their caller has not acknowledged too many",
    "forged": "calls that named another worker as their caller",
    "saturated": "times that the calls in flight to one worker reached IN_FLIGHT_BYTES_MAX",
    "payloads_let_go": (
        "large payloads of idempotent functions that were not kept for another try, because too many were"
    ),
}

# What the broker's shell measures, told beside its counters.
BROKER_GAUGES: Final = {
    "turn_max_ms": "the longest turn of the broker's loop since its start",
    "turn_recent_max_ms": "the longest turn of the last 5 to 10 s",
    "strangers": (
        "connections to both sockets that never completed a ZMTP 3 handshake (another protocol, a wrong mechanism "
        "or kind of socket, silence, a port scan; for a moment also those that are about to)"
    ),
    "descriptors_lacking": "how often no descriptor was left, looked at twice a second",
}

# Told by `Worker.counters`: all that a worker counts, its replica included.
WORKER_COUNTERS: Final = {
    "connects": "times that fresh sockets were made",
    "handshakes_failed": (
        "connections that ended before the handshake was done: whoever took them is no broker, or refuses us"
    ),
    "sessions": "Welcomes",
    "sessions_unknown": "Unknowns: the broker had no session of ours",
    "streams_lost": "times that the stream's connection ended, and the session was renewed",
    "streams_failed": "times that the stream's connection ended before our presence was heard, and was tried anew",
    "streams_silent": "times that the stream said nothing for three heartbeats, and the session was renewed",
    "streams_discarded": "times that more than 10,000 stream messages waited unread, and were thrown away",
    "deltas": "deltas applied",
    "stale_ignored": "deltas, beacons and parts that were known already or not awaited",
    "gaps": "times that a delta was found missing",
    "overruns": "times that too much was thrown away or kept, so that the replica had to ask for what it lacks",
    "digest_mismatches": "times that the replica's digest was not the broker's",
    "foreign_epochs": "times that the stream was that of another broker's life",
    "snapshots": "snapshots put in place",
    "resumes": "answers with deltas alone",
    "snapshots_refused": "snapshots that were older than the replica",
    "broken_answers": "answers with a malformed or impossible part",
    "parts_late": "parts and invitations that were not awaited any more",
    "syncs_gap": "Syncs because of a missing delta",
    "syncs_digest": "Syncs because of a digest that differed",
    "syncs_overrun": "Syncs because too much was thrown away or kept",
    "syncs_late": "Syncs because an answer did not come",
    "calls_refused": "calls and sends refused at once as `busy`: too many are open, or too much was sent and not read",
    "calls_given_up": "calls whose caller did not wait for the outcome",
    "calls_expired": "calls that ended 30 ms after their deadline, without a word from the broker",
    "calls_broker_lost": "calls failed as `broker_lost`",
    "sends_failed": "calls without an answer that nobody was handed, as far as that is known",
    "answers_late": "outcomes that nobody waited for any more",
    "results_orphaned": "outcomes of calls that this worker ran for a session that had ended",
    "unexpected": "messages that make no sense here",
    "malformed": "messages that were none",
    "readers_reset": (
        "times that a reader of `changes()` or a coroutine callback had fallen too far behind, and was told so by "
        "`reset`"
    ),
}


def new_counters(names: Iterable[str] = ()) -> Counters:
    """These names at zero; others begin when they are first counted.

    No collections.Counter, which is written in Python and so takes twice as long to add one: each call adds two.
    """
    return defaultdict(int, dict.fromkeys(names, 0))
