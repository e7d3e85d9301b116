"""docs/protocol.md and the code say the same: when one of them changes alone, these tests fail.

The document's tables are read by their heads, its examples by the word behind the opening fence.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, get_args

import pytest
import zmq

import iii_zmq.core
from iii_zmq import errors, wire
from iii_zmq.core.broker import engine
from iii_zmq.core.broker.core import BrokerCore
from iii_zmq.core.broker.events import Settings
from iii_zmq.core.counters import BROKER_COUNTERS, BROKER_GAUGES, WORKER_COUNTERS
from iii_zmq.core.worker import replica
from iii_zmq.core.worker.core import WorkerCore
from iii_zmq.core.worker.membership import Profile
from iii_zmq.io import sockets

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()
MESSAGES = (ROOT / "iii_zmq" / "wire" / "messages.py").read_text()
FIELD_TYPES: dict[str, Any] = {
    "str": str, "bin": bytes, "int": int, "bool": bool, "array of str": wire.STRINGS, "array of bin": wire.BYTES_LIST,
    "array of [int, str, str]": wire.REFUSALS,
}  # fmt: skip
CODES = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
CORE = [one.name for one in walk_packages(iii_zmq.core.__path__, "iii_zmq.core.")]
MODULES = [wire, sockets, *map(importlib.import_module, CORE)]
TOKEN = bytes(range(16))
WORKER_ID = "1a2b3c4d5e"
ENTRY = wire.encode_entry(wire.FunctionEntry("orders::create"))
WORKER_ROW = wire.encode_row(wire.WorkerRow(WORKER_ID, "orders", "shop-1", 4242, b"\x80", wire.READY))
PROVIDER_ROW = wire.encode_row(wire.ProviderRow(WORKER_ID, "orders::create", True, ENTRY))


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(head, rows) of every table."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [cells(line) for line in block.splitlines()]
        assert all(len(row) == len(head) for row in rows), block
        yield head, rows


def table(first: str, text: str = TEXT) -> list[list[str]]:
    """The rows of the one table whose first column has this head."""
    found = [rows for head, rows in tables(text) if head[0] == first]
    assert len(found) == 1, f"{len(found)} tables of {first!r}"
    return found[0]


def section(title: str) -> str:
    """What stands below a heading, to the next one of any level."""
    return re.split(r"^##+ ", TEXT.split(f"\n### {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def example(name: str) -> str:
    found = re.findall(rf"^```\w+ {name}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def hex_example(name: str) -> bytes:
    """The bytes of an annotated dump: in each line everything before two blanks."""
    return bytes.fromhex("".join(line.split("  ")[0] for line in example(name).splitlines()))


# -- messages ----------------------------------------------------------------------------------------------------------


def test_the_kinds_are_those_of_the_wire() -> None:
    assert [(int(row[0]), row[1]) for row in table("Kind")] == [(wire.KIND[one], one.__name__) for one in wire.MESSAGES]


def test_the_page_in_the_source_names_the_same_kinds_and_ways() -> None:
    page = re.findall(r"^ +(\d+)   (\w+) .*?(control|stream)(, stream)?", MESSAGES, re.MULTILINE)
    assert [(kind, name, over + more) for kind, name, over, more in page] == [
        (row[0], row[1], row[4]) for row in table("Kind")
    ]


def test_senders_and_ways_are_those_of_the_wire() -> None:
    for _, name, sender, _, over, _ in table("Kind"):
        message = getattr(wire, name)
        assert ("client" in sender) == (message in get_args(wire.FromWorker)), name
        assert ("broker" in sender) == (message in get_args(wire.FromBroker) or over == "stream"), name
        assert ("stream" in over) == (message in get_args(wire.OnStream)), name


def test_answers_are_messages() -> None:
    for row in table("Kind"):
        for name in re.findall(r"\b[A-Z]\w+", row[5]):
            assert hasattr(wire, name), row


@pytest.mark.parametrize("message", wire.MESSAGES, ids=lambda one: str(one.__name__))
def test_fields_and_types_are_those_of_the_wire_in_their_order(message: type[Any]) -> None:
    told = [(row[0], FIELD_TYPES[row[1]]) for row in table("Field", section(message.__name__))]
    names = [field.name for field in fields(message)][1 : 1 + len(wire.FIELDS[message])]  # the first is the number
    assert told == list(zip(names, wire.FIELDS[message], strict=True))


def test_every_message_tells_whose_number_it_is() -> None:
    for message in wire.MESSAGES:
        assert "`number`:" in section(message.__name__), message.__name__


# -- examples ----------------------------------------------------------------------------------------------------------


def test_the_call_is_as_the_code_packs_it() -> None:
    call = wire.Call(7, "orders::create", WORKER_ID, 2500, "", 0, 0, wire.pack({"id": 1}))
    assert wire.encode(call) == (hex_example("call"), None)


def test_the_welcome_is_as_the_code_packs_it() -> None:
    welcome = wire.Welcome(
        1, WORKER_ID, TOKEN, "9f86d081884c7d65", "tcp://*:5571", 500, 2000, 4096, 1024, 33554432, False, "0.1.0"
    )
    assert wire.encode(welcome) == (hex_example("welcome"), None)


def test_topics_are_those_of_the_wire() -> None:
    told = {row[0]: row[1].replace("`", "") for row in table("Topic")}
    presence, receipt = told["presence"].split(" + "), told["receipt"].split(" + ")
    assert (told["stream"].encode(), told["snapshot"].encode()) == (wire.STREAM_TOPIC, wire.SNAPSHOT_TOPIC)
    assert (presence, receipt) == ([wire.PRESENCE_PREFIX.decode(), "hex"], [*presence, "+"])
    assert example("presence").strip().encode() == wire.presence_topic(TOKEN)
    assert wire.receipt_topic(TOKEN) == wire.presence_topic(TOKEN) + b"+"


def test_the_digest_is_the_sum_of_the_rows_hashes() -> None:
    rows = [hex_example("row-worker"), hex_example("row-provider")]
    assert rows == [WORKER_ROW, PROVIDER_ROW]
    told = [line.rsplit(" ", 1)[1] for line in example("digest").splitlines()]
    hashes = [wire.row_hash(row) for row in rows]
    assert told == [*(f"{one:032x}" for one in hashes), wire.digest_bytes(sum(hashes)).hex()]


def test_the_functions_digest_is_that_of_the_entries() -> None:
    assert example("functions").strip() == wire.functions_digest([ENTRY]).hex()


# -- words, codes, limits, counters ------------------------------------------------------------------------------------


def test_codes_are_those_of_the_errors() -> None:
    (codes,) = [rows for head, rows in tables(TEXT) if head[:2] == ["Code", "Appears in"]]
    assert sorted(row[0] for row in codes) == sorted(CODES)


@pytest.mark.parametrize("head", [["Code", "Why"], ["Code", "Fate", "When"]])
def test_codes_are_spelt_as_they_are(head: list[str]) -> None:
    (rows,) = [rows for found, rows in tables(TEXT) if found == head]
    assert {code for row in rows for code in row[0].split(", ")} <= CODES


def test_fates_and_reasons_and_flags_are_those_of_the_code() -> None:
    assert {row[0] for row in table("Fate")} == errors.FATES
    assert {row[0].strip('"') for row in table("Reason")} == wire.REASONS
    assert {row[0]: int(row[1]) for row in table("Flag")} == {
        "exclusive": wire.EXCLUSIVE, "idempotent": wire.IDEMPOTENT, "internal": wire.INTERNAL,
    }  # fmt: skip
    assert f"(value {wire.NO_ANSWER}): no answer wanted" in section("Call")
    for state in wire.STATES:
        assert f"`{state}`" in TEXT


def test_reasons_of_a_sync_are_those_that_are_counted() -> None:
    told = next(row for row in table("Field", section("Sync")) if row[0] == "reason")[2]
    counted = [one.removeprefix("syncs_") for one in BROKER_COUNTERS if one.startswith("syncs_")]
    assert told.replace("`", "").split(", ") == counted


@pytest.mark.parametrize(
    ("head", "meanings"),
    [("Counter", BROKER_COUNTERS), ("Gauge", BROKER_GAUGES), ("Worker's counter", WORKER_COUNTERS)],
)
def test_counters_mean_what_the_source_says_in_its_order(head: str, meanings: dict[str, str]) -> None:
    assert [tuple(row) for row in table(head)] == list(meanings.items())


def test_both_cores_tell_these_counters() -> None:
    core = BrokerCore("e", Settings(), new_token=lambda: TOKEN, new_id=lambda: WORKER_ID)
    assert list(core.status(0.0)["counters"]) == [*BROKER_COUNTERS, *BROKER_GAUGES]
    assert list(WorkerCore(Profile("w", "h", 1, "tcp://x:1"), random=lambda: 1.0).counted()) == list(WORKER_COUNTERS)


def test_whatever_is_counted_is_told() -> None:
    """In the sources: a name that is counted and not told would never be seen."""
    counted: set[str] = {f"syncs_{one}" for one in get_args(replica.Wanted)} | set(replica._COUNTERS.values())
    for path in [*(ROOT / "iii_zmq" / "core").rglob("*.py"), *(ROOT / "iii_zmq" / "io").rglob("*.py")]:
        counted |= set(re.findall(r'counters\["(\w+)"\] \+=', path.read_text()))
    told = {*WORKER_COUNTERS, *BROKER_COUNTERS}
    assert counted - told == {"syncs_epoch"}  # a foreign epoch is answered by Hello, never by Sync


def test_engine_functions_are_those_of_the_broker() -> None:
    assert {row[0] for row in table("Function")} == set(engine.DESCRIPTIONS)


@pytest.mark.parametrize("row", table("Constant"), ids=lambda row: str(row[0]))
def test_limits_have_the_values_of_their_constants(row: list[str]) -> None:
    values = {Decimal(str(vars(module)[row[0]])) for module in MODULES if row[0] in vars(module)}
    assert values == {Decimal(row[1].replace(",", ""))}


def test_every_limit_of_the_wire_is_told() -> None:
    limits = {name for name, value in vars(wire).items() if name.endswith("_MAX") and isinstance(value, int)}
    assert limits <= {row[0] for row in table("Constant")}


def test_options_are_those_that_our_own_sockets_have() -> None:
    times = {"heartbeat": "500", "ttl": "2000"}
    with zmq.Context() as context, sockets.dealer(context, 500, 2000) as dealer, sockets.sub(context, 500, 2000) as sub:
        for name, at_dealer, at_sub, _ in table("Option"):
            for socket, told in ((dealer, at_dealer), (sub, at_sub)):
                if told:
                    assert socket.getsockopt(getattr(zmq, name)) == int(times.get(told, told)), name


def test_numbers_in_the_text_are_told_in_the_limits_too() -> None:
    limits = {row[1] for row in table("Constant")}
    assert {one for one in re.findall(r"\b\d{1,3}(?:,\d{3})+\b", TEXT) if one not in limits} <= {"10,000", "2,500"}


def test_the_files_that_the_architecture_names_are_there() -> None:
    named = re.findall(r"\b(?:core|io|cli)/\w+(?:/\w+)?", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 20
    assert {one for one in named if not (ROOT / "iii_zmq" / f"{one}.py").exists()} == set()
