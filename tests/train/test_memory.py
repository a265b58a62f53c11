"""Freed memory stays in the process where the C library can do that."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from sinewich_jax.train.memory import keep_freed_memory
took = {call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(took, faults())
"""


def run(call: str) -> tuple[str, int]:
    command = [sys.executable, "-c", SCRIPT.format(call=call)]
    took, count = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return took, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_second_large_allocation_touches_no_fresh_page():
    took, kept = run("keep_freed_memory()")
    if took == "False":
        pytest.skip("the C library is not glibc")
    _, fresh = run("None")
    assert kept < 100 < fresh
