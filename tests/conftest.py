"""Settings that must be in place before JAX starts: CPU, eight fake devices, compilation cache."""

from __future__ import annotations

import gc
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = pathlib.Path(tempfile.gettempdir()) / "sinewich_jax_compilation_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# A busy machine is no error of an example that takes long.
hypothesis.settings.register_profile("sinewich", deadline=None)
hypothesis.settings.load_profile("sinewich")

# LLVM without optimisation and in one piece, and XLA's older way to emit loops: programs of the
# same operations, compiled in a sixth of the time. Versions that have lost the older way (jaxlib
# 0.12) ignore that option, and take half of the time.
COMPILES_FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
# XLA may run collectives that do not depend on each other at once, each device's on threads that
# all devices share. On fewer threads than devices (eight fake ones on two cores) every thread can
# come to wait for a device that has none left: XLA aborts the process after 40 s.
ONE_COLLECTIVE_AT_A_TIME = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def pytest_configure(config):
    """The fast tier would be compiling above all; other runs compile as users do.

    ``XLA_FLAGS=`` before the command compiles the fast tier as users do too.
    """
    if config.getoption("markexpr") == "not slow":
        os.environ.setdefault("XLA_FLAGS", COMPILES_FAST)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} {ONE_COLLECTIVE_AT_A_TIME}".strip()


def pytest_collection_finish(session):
    """What is there now stays: the collector need not walk through all of JAX again and again.

    Tracing makes many small objects, and a sixth of the time of the fast tier was that walk.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
