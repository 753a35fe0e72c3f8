"""The build that a record belongs to: what the code of its algorithm was."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from algos.host import LIBRARIES, every_library, version

if TYPE_CHECKING:
    from algos.contract import Algorithm

ROOT = Path(__file__).parent


@cache
def build_of(algorithm: Algorithm) -> str:
    """Hash of the algorithm's module, of the engine and of its libraries' versions: an edit makes records stale."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    files = sorted((ROOT / "engine").glob("*.py"))
    for kind in type(algorithm).__mro__:  # what it inherits from another file is its own as well
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file and kind.__module__ != "algos.contract":
            files.append(Path(file))
    for path in files:
        digest.update(path.read_bytes())
    for name in LIBRARIES.get(algorithm.runtime, every_library()):
        digest.update(f"{name}={version(name)}".encode())
    return digest.hexdigest()[:12]
