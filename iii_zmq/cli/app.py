"""The verbs: names, options, help. Each passes the parsed arguments to the module that does the work."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from .. import errors
from .._version import __version__
from .exits import MEANINGS, CommandError, Exit, Problem, problem_of, usage

# Older versions of Typer raise click's exceptions, newer ones their own; the tree is the same.
_ParsingFailed: type[Exception] = typer.BadParameter.__mro__[2]

_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {exit.value:>3}  {text}" for exit, text in MEANINGS.items())

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXIT_CODES,
)


def run(words: list[str]) -> int:
    """Runs one command line; the exit code. Expected errors are reported here, in one line."""
    as_json = "--json" in words
    try:
        ended = typer.main.get_command(app)(words, prog_name="iii-broker", standalone_mode=False)
    except _ParsingFailed as error:
        text: str = error.format_message()  # type: ignore[attr-defined]
        return Problem(Exit.USAGE, "usage", text).report(as_json)
    except (CommandError, errors.IIIError) as error:
        return problem_of(error).report(as_json)
    except typer.Abort:
        return Exit.INTERRUPTED
    return ended if isinstance(ended, int) else Exit.OK


# -- options that several verbs share ----------------------------------------------------------------------------------


def _check_seconds(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is not a time in seconds; expected 0 or more")
    return value


def _option(flag: str, metavar: str, help: str, **more: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, **more)


_URL_HELP = "The broker's address. [default: III_URL, else tcp://127.0.0.1:5570]"
_STREAM_HELP = "Address of the stream of changes. [default: the next port; for ipc the path + .stream]"
_SECONDS: dict[str, Any] = {"callback": _check_seconds}
_HIDDEN: dict[str, Any] = {"show_default": False}  # for an empty default

Url = Annotated[str | None, _option("--url", "URL", _URL_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float, _option("--timeout", "S", "Give up after this many seconds.", **_SECONDS)]
MaybeTimeout = Annotated[float | None, _option("--timeout", "S", "Stop after this many seconds.", **_SECONDS)]
Search = Annotated[str, _option("--search", "TEXT", "Only rows that contain this text.", **_HIDDEN)]
OfWorker = Annotated[str, _option("--worker", "ID", "Only this worker (id or name).", **_HIDDEN)]


def _show_version(asked: bool) -> None:
    if asked:
        from .. import wire

        print(f"iii-broker {__version__}" + (" (compiled)" if wire.COMPILED else ""))
        raise typer.Exit


@app.callback()
def iii_broker(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The live function registry of a LAN. Without a verb it serves.

    \b
    Examples:
      iii-broker                                          serve on 127.0.0.1:5570
      iii-broker demo                                     see it work
      iii-broker functions                                list the functions and who offers them
      iii-broker call payments::charge amount=10          call a function
      iii-broker watch                                    see every change as it happens
    """


# -- verbs -------------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    url: Annotated[
        str, _option("--url", "URL", "Address to serve on; port 0 picks a free one.")
    ] = "tcp://127.0.0.1:5570",
    stream_url: Annotated[str | None, _option("--stream-url", "URL", _STREAM_HELP)] = None,
    heartbeat: Annotated[float, _option("--heartbeat", "S", "Seconds between heartbeats.")] = 0.5,
    ttl: Annotated[float, _option("--ttl", "S", "Seconds of silence after which a worker counts as dead.")] = 2.0,
    log_level: Annotated[str, _option("--log-level", "L", "What to log on stderr: debug, info, warning or error.")] = (
        "info"
    ),
    as_json: AsJson = False,
) -> None:
    """Serve the registry until Ctrl-C or SIGTERM. iii-broker without a verb does the same.

    There is no encryption yet: if other machines can reach the address, a warning is printed.

    \b
    Examples:
      iii-broker serve
      iii-broker serve --url tcp://0.0.0.0:5570
      iii-broker serve --url ipc:///run/iii/broker --json
      iii-broker serve --url tcp://127.0.0.1:0 --ttl 1 --heartbeat 0.25
    """
    from .serving import serve

    serve(url, stream_url, heartbeat_s=heartbeat, ttl_s=ttl, log_level=log_level, as_json=as_json)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """See it work, in a few seconds.

    A broker and several of the examples start; they join, call one another, change, die and leave. You see when each
    worker hears of each change. The demo uses free ports and leaves nothing behind. It fails if a worker misses a
    change.

    \b
    Examples:
      iii-broker demo
      iii-broker demo --json
    """
    from .demo import play

    raise typer.Exit(play(as_json))


@app.command()
def functions(
    prefix: Annotated[str, _option("--prefix", "P", "Only ids that begin with this.", **_HIDDEN)] = "",
    search: Search = "",
    worker: OfWorker = "",
    all_: Annotated[bool, typer.Option("--all", help="Include internal functions and the broker's own.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the functions and who offers them.

    \b
    Examples:
      iii-broker functions
      iii-broker functions --prefix payments:: --json
      iii-broker functions --search refund --worker billing
    """
    from .lists import Filter, show_functions

    show_functions(url, Filter(prefix, search, worker, all_), as_json)


@app.command()
def workers(
    prefix: Annotated[str, _option("--prefix", "P", "Only names that begin with this.", **_HIDDEN)] = "",
    search: Search = "",
    worker: OfWorker = "",
    all_: Annotated[bool, typer.Option("--all", help="No effect: all workers are always listed.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the workers: state, functions, calls in flight.

    \b
    Examples:
      iii-broker workers
      iii-broker workers --search lab-pc-3
      iii-broker workers --worker billing --json
    """
    from .lists import Filter, show_workers

    show_workers(url, Filter(prefix, search, worker, all_), as_json)


@app.command()
def info(
    id: Annotated[str, typer.Argument(metavar="ID", help="A function's id, or a worker's id or name.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show all details of one function or worker.

    \b
    Examples:
      iii-broker info payments::charge
      iii-broker info 3f9c2a71d0
      iii-broker info engine::status --json
    """
    from .lists import show_info

    show_info(url, id, as_json)


@app.command()
def watch(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN]...", help="Only functions whose id matches, such as 'orders::*'."),
    ] = None,
    start: Annotated[str | None, _option("--from", "[EPOCH:]SEQ", "Start with the change after this position.")] = None,
    count: Annotated[int | None, _option("--count", "N", "Stop after N changes; a batch is one.", min=0)] = None,
    timeout: MaybeTimeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show every change as it happens.

    Watches until Ctrl-C, --count or --timeout.

    The first line says where it starts: "resumed" if the broker still holds every change since --from, else "snapshot".

    \b
    Examples:
      iii-broker watch
      iii-broker watch 'orders::*' 'payments::*'
      iii-broker watch --from 120 --json
      iii-broker watch --count 1 --timeout 60
    """
    from .watching import watch

    watch(url, tuple(patterns or ()), start, count, timeout, as_json)


@app.command(context_settings={"ignore_unknown_options": True})  # a payload may be -1
def call(
    id: Annotated[str, typer.Argument(metavar="ID", help="The function's id.")],
    payload: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JSON|KEY=VALUE...|-]", help="One JSON text, KEY=VALUE pairs, or - for stdin."),
    ] = None,
    timeout: Timeout = 30.0,
    worker: Annotated[str | None, _option("--worker", "ID", "Call this provider only.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Call a function and print its result.

    In KEY=VALUE the value is read as JSON if possible, else as a string. If you give no payload, it is null. Bytes are
    {"$bytes": BASE64}, in payloads and results.

    \b
    Examples:
      iii-broker call payments::charge amount=10 currency=EUR
      iii-broker call payments::charge '{"amount": 10}' --timeout 2
      echo '[1, 2, 3]' | iii-broker call stats::sum - --json
      iii-broker call cache::clear --worker 3f9c2a71d0
    """
    from .calls import call

    call(url, id, payload or [], timeout, worker, as_json)


@app.command()
def wait(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Functions to wait for.")],
    timeout: Timeout = 30.0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Wait until somebody offers each of these functions.

    \b
    Examples:
      iii-broker wait payments::charge && ./start-orders
      iii-broker wait orders::create stock::reserve --timeout 120 --json
    """
    from .calls import wait

    wait(url, ids, timeout, as_json)


@app.command()
def ping(timeout: Timeout = 5.0, url: Url = None, as_json: AsJson = False) -> None:
    """Measure a round trip to the broker.

    \b
    Examples:
      iii-broker ping
      iii-broker ping --url tcp://10.0.0.5:5570 --json
    """
    from .calls import ping

    ping(url, timeout, as_json)


@app.command()
def status(url: Url = None, as_json: AsJson = False) -> None:
    """Show how the broker is doing, and what has gone wrong so far.

    \b
    Examples:
      iii-broker status
      iii-broker status --json
    """
    from .lists import show_status

    show_status(url, as_json)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def bench(context: typer.Context) -> None:
    """Measure calls, changes and joins beside bare ZeroMQ.

    Needs a checkout of the project; all further arguments go to its bench.

    \b
    Examples:
      iii-broker bench call --quick
      iii-broker bench join --mode pinned
      iii-broker bench -- --help
    """
    import os
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        raise usage("bench needs a checkout of the project: the installed package does not contain it")
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execv(sys.executable, [sys.executable, "-m", "bench", *context.args])
