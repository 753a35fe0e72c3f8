"""What the measurements mean: records -> statistics, tables, plots and one page.
Imports bench.record and bench.store only.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def _matplotlib_folder() -> str | None:
    """Where Matplotlib may keep its list of fonts, where it would find no place itself and say so."""
    if os.environ.get("MPLCONFIGDIR"):
        return None
    try:
        for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache")):
            base = Path(os.environ.get(variable) or Path.home() / usual) / "matplotlib"
            base.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=base).close()
    except (OSError, RuntimeError):  # no home, or none that may be written
        folder = tempfile.mkdtemp(prefix="convbench-matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    return None


# Both are read when Matplotlib is imported, which modules of this package do.
os.environ["MPLBACKEND"] = "Agg"  # a user's choice for windows may not exist here
if folder := _matplotlib_folder():
    os.environ["MPLCONFIGDIR"] = folder
