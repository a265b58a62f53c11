"""A command in a fresh process: its wall time, its processor time and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sinewich_jax.errors import SinewichError

# Runs the command and waits for it, in an interpreter that holds nothing: to a process the system
# counts the memory of the one that started it, which here may have made gigabytes of input.
_WATCH = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
wall = time.perf_counter() - begin
process.returncode = os.waitstatus_to_exitcode(status)
unit = 1 if sys.platform == "darwin" else 1024
cpu = used.ru_utime + used.ru_stime
print(json.dumps([process.returncode, wall, cpu, used.ru_maxrss * unit / 1e6]))
"""


class Cost(NamedTuple):
    """What a process took.

    Attributes:
      wall_s: seconds from start to end, the interpreter's start included.
      cpu_s: seconds of processor, of all threads.
      peak_rss_mb: the most memory it had, in 10^6 bytes.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float


def python(arguments: Sequence[str]) -> Cost:
    """Runs this interpreter anew.

    Args:
      arguments: what stands behind ``python``.

    Raises:
      SinewichError: it fails; its last line is given.
    """
    watched = [sys.executable, "-S", "-E", "-c", _WATCH, sys.executable, *arguments]
    done = subprocess.run(watched, capture_output=True, text=True, check=True)
    status, *cost = json.loads(done.stdout)
    if status:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SinewichError(f"the measured command ended with {status}: {last}")
    return Cost(*cost)


def versions() -> dict[str, str | int]:
    """What a number was measured with."""
    import platform

    import numpy

    import sinewich_jax

    return {
        "sinewich_jax": sinewich_jax.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
    }
