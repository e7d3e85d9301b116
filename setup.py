"""The part of the build that setup.cfg can't say: with III_ZMQ_COMPILE=1, what each call passes through becomes C.

mypyc makes it of these modules as they stand, and needs a C compiler and Python's headers. Without the variable all is
installed as plain Python, and does the same.
"""

from __future__ import annotations

import os
from glob import glob
from typing import Any

from setuptools import setup

# Classes that users meet stay Python: they may be subclassed, pickled and looked into.
PLAIN = {*glob("iii_zmq/**/__init__.py", recursive=True), "iii_zmq/core/worker/views.py"}
# Of the shells, what a call passes through, but not what users meet, or what inherits from classes of Python's own.
SHELLS = (
    "broker", "edge", "gauges", "worker/async_driver", "worker/forks", "worker/handlers", "worker/hub", "worker/link",
    "worker/monitor", "worker/payloads", "worker/sync_driver", "worker/sync_guest", "worker/waits",
)  # fmt: skip
COMPILED = [
    *sorted({*glob("iii_zmq/wire/*.py"), *glob("iii_zmq/core/**/*.py", recursive=True)} - PLAIN),
    *(f"iii_zmq/io/{name}.py" for name in SHELLS),
]


def compiled() -> dict[str, Any]:
    try:
        from mypyc.build import mypycify
    except ImportError:  # asked what the build needs, before that is there
        return {"setup_requires": ["mypy[mypyc]~=2.4", "pyzmq>=26.0", "msgpack>=1.0.8"]}  # the latter for their types
    # The rest of the package is followed for its types only; what that needs besides is not there while this builds.
    flags = ["--follow-imports=silent", "--ignore-missing-imports"]
    return {"ext_modules": mypycify([*flags, *COMPILED], group_name="iii_zmq", debug_level="0")}


setup(**compiled() if os.environ.get("III_ZMQ_COMPILE") == "1" else {})
