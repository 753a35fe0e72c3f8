"""Where earlier revisions of ``algos``, which a duel measures as well, have what a worker asks for."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

EARLIER = {"algos.plans": "algos.functional", "algos.lower.tree": "algos.lower.chain",
           "algos.lower.compose": "algos.lower.chain"}  # fmt: skip


def stand_in() -> None:
    """Let the module that had the names stand for one that is not there yet."""
    for name, earlier in EARLIER.items():
        if find_spec(name) is None:
            sys.modules[name] = import_module(earlier)
