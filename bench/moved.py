"""What a worker asks of ``algos``, where earlier revisions, which a duel measures as well, have it elsewhere
or not at all.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

EARLIER = {"algos.plans": "algos.functional", "algos.lower.tree": "algos.lower.chain",
           "algos.lower.compose": "algos.lower.chain", "algos.lower.search": "algos.lower.chain"}  # fmt: skip
INSTEAD: dict[tuple[str, str], Any] = {("algos.engine.memory", "rooms"): {}}  # nothing was kept


def stand_in() -> None:
    """Let the module that had the names stand for one that is not there yet, and put in what is missing."""
    for name, earlier in EARLIER.items():
        if find_spec(name) is None:
            sys.modules[name] = import_module(earlier)
    for (module, name), value in INSTEAD.items():
        vars(import_module(module)).setdefault(name, value)
