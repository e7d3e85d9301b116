"""The `iii-broker` command: parses, calls, prints; decides nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Annotated, Optional

import typer

from .io.broker import DEFAULT_URL, Broker

app = typer.Typer(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def main_callback(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.invoke(serve)


@app.command()
def serve(
    url: Annotated[str, typer.Option()] = DEFAULT_URL,
    stream_url: Annotated[Optional[str], typer.Option()] = None,
    heartbeat: Annotated[float, typer.Option()] = 0.5,
    ttl: Annotated[float, typer.Option()] = 2.0,
    log_level: Annotated[str, typer.Option()] = "info",
    json_: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Serve the registry."""
    broker = Broker(url, stream_url, heartbeat_s=heartbeat, ttl_s=ttl)
    broker.bind()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: broker.stop())
    if json_:
        line = {"event": "listening", "url": broker.url, "stream_url": broker.stream_url, "epoch": broker.epoch}
        print(json.dumps({**line, "pid": os.getpid()}), flush=True)
    else:
        print(f"listening on {broker.url} stream {broker.stream_url} epoch {broker.epoch}", flush=True)
    broker.run()


def main() -> None:
    app()


if __name__ == "__main__":
    sys.exit(main())
