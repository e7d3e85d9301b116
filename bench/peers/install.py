"""Environments of the peers' own, made on first use below .bench-peers/ in the clone, and nothing outside it.

A Python client gets a venv, Node clients a node_modules, a Debian server is taken from PATH, or else downloaded and
unpacked (not installed: no root, nothing of the system changes). The invariant: what has a stamp was made to its end.
Whatever fails ends as `Missing` with the last line that the tool said.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peers.peer import Missing
from bench.processes import ROOT

CACHE = ROOT / ".bench-peers"
DEBIAN_ROOT = CACHE / "debian"
STEP_TIMEOUT_S = 1200.0  # crossbar has over a hundred dependencies
WORD_MAX = 200  # characters of what a tool said
SBIN = "/usr/sbin:/usr/local/sbin"


def venv(name: str, *packages: str) -> Path:
    """The python of a venv that has these packages. Raises: Missing."""
    where = CACHE / f"venv-{name}"
    python = where / "bin" / "python"

    def make() -> None:
        _run(name, [getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--clear", str(where)])
        _run(name, [str(python), "-m", "pip", "install", "--no-input", "--quiet", *packages])

    _once(f"venv-{name}", (sys.version, *packages), make)
    return python


def uvloop_venv() -> Path:
    """A venv with what iii_zmq needs, in the versions that are here, and uvloop, as the other Python clients have it.

    Raises: Missing.
    """
    needs = [f"{name}=={importlib.metadata.version(name)}" for name in ("pyzmq", "msgpack")]
    return venv("iii", *needs, "uvloop")


def node_modules(name: str, *packages: str) -> Path:
    """A directory with a node_modules that has these packages. Raises: Missing."""
    where = CACHE / f"node-{name}"
    if not shutil.which("node") or not shutil.which("npm"):
        raise Missing("node and npm are not on PATH")

    def make() -> None:
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        _run(name, ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(where), *packages])

    _once(f"node-{name}", packages, make)
    return where


def debian(program: str, *packages: str) -> tuple[str, dict[str, str]]:
    """The path of a server's program, and the environment it needs. Raises: Missing."""
    if found := shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), SBIN))):
        return found, {}
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Missing(f"{program} is not on PATH, and this is no Debian to get it from")

    def make() -> None:
        debs = CACHE / "debian-packages" / program
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir(parents=True)
        _run(program, ["apt-get", "download", "-q", *packages], debs)
        for deb in sorted(debs.glob("*.deb")):
            _run(program, ["dpkg", "-x", str(deb), str(DEBIAN_ROOT)])

    _once(f"debian-{program}", packages, make)
    for directory in ("usr/bin", "usr/sbin"):
        if (path := DEBIAN_ROOT / directory / program).exists():
            libraries = [str(each) for each in (DEBIAN_ROOT / "usr/lib").glob("*-linux-*")]
            return str(path), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    raise Missing(f"{program} is not in the packages {' '.join(packages)}")


def python_versions(python: Path, *names: str) -> dict[str, str]:
    """The installed version of each distribution."""
    code = "import sys, importlib.metadata as m; print(*[m.version(name) for name in sys.argv[1:]])"
    return dict(zip(names, _said([str(python), "-c", code, *names]).split(), strict=True))


def node_versions(modules: Path, *names: str) -> dict[str, str]:
    """The installed version of each package, and Node's own."""
    code = "for (const f of process.argv.slice(1)) console.log(JSON.parse(require('fs').readFileSync(f)).version)"
    files = [str(modules / "node_modules" / name / "package.json") for name in names]
    found = dict(zip(names, _said(["node", "-e", code, *files]).split(), strict=True))
    return {"node": _said(["node", "--version"]).strip().removeprefix("v"), **found}


def program_version(argv: Sequence[str], env: dict[str, str]) -> str:
    """The first line that a program says about itself."""
    return _said(argv, env).strip().partition("\n")[0]


def _said(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    whole = {**os.environ, **(env or {})}
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=whole, timeout=60).stdout


def _once(name: str, made_of: Sequence[str], make: Callable[[], None]) -> None:
    stamp, text = CACHE / f"{name}.stamp", "\n".join(made_of)
    if stamp.exists() and stamp.read_text() == text:
        return
    CACHE.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    print(f"installing {name} below {CACHE.name}/ (once, up to some minutes) ...", file=sys.stderr, flush=True)
    make()
    stamp.write_text(text)


def _run(name: str, argv: Sequence[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{name}: {error}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise Missing(f"{name}: {lines[-1][:WORD_MAX]}")
