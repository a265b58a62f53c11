"""Task switches: a task as mask, sign and knob, banks of them in files, and a router among them.

    switch = switches.make_switch(merging.task_vector(params, base), alpha=0.6)
    params = switches.apply_switch(base, switch)
    with switches.SwitchBank.create("tasks.swb", base=base) as bank:
        bank.add("eurosat", switch)
        print(bank.report().table())
    router = switches.Router.fit(query_set)      # a few examples choose the task, or none

T-Switch and Auto-Switch (arXiv 2412.00054). Names are looked up on first use; importing this room
imports neither JAX nor a file library, and only learning (``compress``, ``fit_metric``) needs JAX.
"""

from __future__ import annotations

import sys
from typing import Any

from sinewich_jax import lazy

_MODULES = ("apply", "bank", "codecs", "dispatch", "flex", "leaf", "make", "metric", "own")
_MODULES += ("protocols", "queries", "refit", "report", "router", "summary", "tree_files", "voting")
_HOMES = {
    "METHODS": "make",
    "Base": "bank",
    "CodecError": "codecs",
    "DenseLeaf": "leaf",
    "Dispatcher": "dispatch",
    "Examples": "protocols",
    "LeafSwitch": "leaf",
    "QuerySet": "queries",
    "Report": "report",
    "Router": "router",
    "Switch": "leaf",
    "SwitchBank": "bank",
    "SwitchBankError": "bank",
    "abstention_threshold": "voting",
    "apply_switch": "apply",
    "build_query_set": "queries",
    "compress": "flex",
    "decode_mask": "codecs",
    "encode_mask": "codecs",
    "evaluate_protocols": "protocols",
    "fit_metric": "metric",
    "from_official_stream": "codecs",
    "load_switch": "tree_files",
    "make_switch": "make",
    "merge_switches": "apply",
    "official_stream": "codecs",
    "refit_head": "refit",
    "remove_switch": "apply",
    "route": "router",
    "save_switch": "tree_files",
    "split_own": "own",
    "stack_switches": "apply",
    "summarize": "summary",
    "unpack": "apply",
    "votes": "voting",
}

_look_up, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)


def __getattr__(name: str) -> Any:
    # Switches may be older than the import of JAX, and what is looked up here may go to jax.jit.
    if leaf := sys.modules.get(f"{__name__}.leaf"):
        leaf.register_pytrees()
    return _look_up(name)
