"""docs/benchmarks.md and its charts, from results alone: the same JSON always gives the same page.

Losing figures are shown like winning ones: a table has every subject that was measured, the best first, whoever it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.measure import Spread
from bench.peers import charts, targets
from bench.peers.peer import CHANGES, DEATHS, JOINS, STORMS, Peer
from bench.peers.registry import Fetch
from bench.peers.results import HIGHER, Figure, Results
from bench.peers.runner import SUBJECTS
from bench.processes import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT / "docs" / "benchmarks.json"
CHARTS = ROOT / "docs" / "charts"
PRODUCT = "Worker"

# The page's sections: measure, heading, what was done.
SECTIONS = (
    (
        "latency",
        "Latency of a call",
        "One caller, one provider, an echo of 100 bytes, one call at a time. The CPU columns show how much CPU one "
        "call costs the processes of each side.",
    ),
    (
        "rate",
        "Calls per second",
        "Payloads of 100 bytes; the calls in flight are counted over all callers. Eight callers and eight providers "
        "are sixteen processes; without a broker, every caller has its own provider.",
    ),
    (
        "payload",
        "Large payloads",
        "The payload goes to the provider and comes back; payload per second counts it once. 1 MB is 1,000,000 bytes.",
    ),
    (
        CHANGES,
        "A change reaches everybody",
        "The time from just before the request for the change until the last observer's callback has run. Each "
        "observer has its own connection; all share ten processes. The floor is one XPUB that sends as many bytes to "
        "as many SUBs, in rounds that alternate with the subject's own. Redis has no registry: it publishes.",
    ),
    (
        DEATHS,
        "A provider dies",
        "The time from SIGKILL until the last observer's callback has run. etcd notices when a lease of 2 s, which "
        "the owner keeps alive, expires.",
    ),
    (
        STORMS,
        "All join at once",
        "The time from the first connection until everybody has joined, has entered something and has seen everybody "
        "else's entry. The product's replicas are then compared by their digests.",
    ),
    (
        JOINS,
        "Joining a large registry",
        "The time until a fresh process has a complete replica. With the product, others call meanwhile, every 5 ms. "
        "Memory is the growth of resident memory divided by the number of functions. The floor fetches as many bytes "
        "as the product received, over a bare DEALER.",
    ),
)

# What is shown as a picture: file, title, and which figures.
CHARTED = (
    ("latency", "Latency of a call, p50 (one CPU)", "latency", "100 bytes, 1 in flight", "p50", "pinned"),
    ("rate", "Calls per second, 100 in flight (one CPU)", "rate", "100 in flight, 1 caller, 1 provider",
     "calls per second", "pinned"),
    ("rate-8", "Calls per second, 100 in flight, 8 callers, 8 providers (two CPUs)", "rate",
     "100 in flight, 8 callers, 8 providers", "calls per second", "free"),
    ("payload-1mb", "Payload of 1 MB, per second (one CPU)", "payload", "1 MB, 4 in flight", "payload per second",
     "pinned"),
    ("changes-1000", "A change reaches the last of 1,000 observers (one CPU)", CHANGES, "1,000 observers",
     "to the last", "pinned"),
    ("deaths", "A killed provider is known to the last of 100 observers", DEATHS, "100 observers",
     "SIGKILL to the last", "free"),
    ("joins-100000", "Joining a registry of 100,000 functions (one CPU)", JOINS, "100,000 functions",
     "to a complete replica", "pinned"),
)  # fmt: skip


def show(results: Results) -> None:
    """Print the tables."""
    print("\n".join([*_sections(results, with_charts=False), *_targets(results)]), flush=True)


def write(results: Results) -> None:
    """Write the page, and a chart for whatever was measured of those that are known here."""
    CHARTS.mkdir(parents=True, exist_ok=True)
    for name, title, measure, case, metric, mode in CHARTED:
        figures = results.find(measure=measure, case=case, metric=metric, mode=mode)
        if figures:
            (CHARTS / f"{name}.svg").write_text(charts.bars(title, figures))
    PAGE.write_text(
        "\n".join([*_head(results), *_targets(results), *_sections(results, with_charts=True), *_tail(results)]) + "\n"
    )
    results.write(DATA)
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


def _head(results: Results) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield (
        "iii_zmq beside the tools you might pick instead, in one run on one machine. Each peer has its usual client "
        "and its own defaults for durability; security is off everywhere; payloads and numbers of processes are the "
        "same."
    )
    yield ""
    yield "Repeat it with"
    yield ""
    if "compiled" in results.machine.get("iii_zmq", ""):
        yield "    bin/compile"
    yield f"    {results.command}"
    yield ""
    yield (
        f"which takes about {max(1, round(results.took_s / 60))} minutes, after a first run that installs the peers. "
        "That command writes this page."
    )
    yield ""
    yield (
        "A figure is the median of rounds that alternate between the subjects, with the lowest and the highest round "
        "in brackets. *To Worker* is the figure divided by that of iii_zmq's `Worker`: above 1 the subject's figure "
        "is larger. It is taken round by round if the subjects took turns, else from the medians. Before each round "
        "of calls the same calls are made for up to a quarter of a second, uncounted. Machines differ, and so do "
        "minutes on one machine: compare ratios. *Pinned* means that all processes share one CPU; *free* means that "
        "they run wherever the kernel puts them. All rounds are in [benchmarks.json](benchmarks.json)."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in {**results.machine, **results.versions}.items():
        yield f"| {name} | {value} |"
    yield ""
    yield "| who | by what |"
    yield "|---|---|"
    measured = {each.subject for each in results.figures}
    subjects: tuple[type[Peer], ...] = (*SUBJECTS, Fetch)
    for subject in subjects:
        if subject.name in measured:
            yield f"| {subject.name} | {subject.what} |"
    yield ""


def _targets(results: Results) -> Iterator[str]:
    yield "## Targets"
    yield ""
    yield (
        "Set before anything was measured, and judged by the figures below. [performance.md](performance.md) explains "
        "why a target is missed. *A by B* is A divided by B."
    )
    yield ""
    yield f"| | | {' | '.join(targets.PRODUCTS)} |"
    yield "|---|---|" + "---|" * len(targets.PRODUCTS)
    for row in targets.rows(results):
        yield f"| {' | '.join(row)} |"
    yield ""


def _sections(results: Results, with_charts: bool) -> Iterator[str]:
    for measure, heading, words in SECTIONS:
        figures = results.find(measure=measure)
        if not figures:
            continue
        yield f"## {heading}"
        yield ""
        yield words
        yield ""
        if with_charts:
            for name, title, of, case, metric, mode in CHARTED:
                if of == measure and results.find(measure=of, case=case, metric=metric, mode=mode):
                    yield f"![{title}](charts/{name}.svg)"
                    yield ""
        for case, mode in dict.fromkeys((each.case, each.mode) for each in figures):
            yield from _table(case, mode, [each for each in figures if (each.case, each.mode) == (case, mode)])


def _table(case: str, mode: str, figures: list[Figure]) -> Iterator[str]:
    """A row a subject, a column a metric; ordered by the first metric, the best first."""
    metrics = list(dict.fromkeys(each.metric for each in figures))
    found = {(each.subject, each.metric): each for each in figures}
    first = metrics[0]
    leading = [each for each in figures if each.metric == first]
    leading.sort(key=lambda each: each.spread.median, reverse=leading[0].better == HIGHER)
    subjects = [each.subject for each in leading]
    subjects += [subject for subject in dict.fromkeys(each.subject for each in figures) if subject not in subjects]
    ours = {each.subject for each in figures if each.kind == "product"}
    units = {each.metric: each.unit for each in figures}
    yield f"**{case}, {mode}**"
    yield ""
    yield "| | " + " | ".join(f"{metric}, {units[metric]}" for metric in metrics) + " | to Worker |"
    yield "|---|" + "---:|" * (len(metrics) + 1)
    for subject in subjects:
        cells = [_cell(found.get((subject, metric))) for metric in metrics]
        mine, product = found.get((subject, first)), found.get((PRODUCT, first))
        ratio = mine.ratio_to(product) if mine and product and subject != PRODUCT else None
        name = f"**{subject}**" if subject in ours else subject
        cells.append(_spread(ratio, "x") if ratio else "")
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return _spread(figure.spread)


def _spread(spread: Spread, unit: str = "") -> str:
    if spread.rounds == 1:
        return charts.number(spread.median) + unit
    return f"{charts.number(spread.median)}{unit} ({charts.number(spread.low)}..{charts.number(spread.high)})"


def _tail(results: Results) -> Iterator[str]:
    if results.left_out:
        yield "## Left out"
        yield ""
        for each in results.left_out:
            yield f"- {each.subject}, {each.where}: {each.why}"
