"""The one way in which files are written: complete or not at all, and explained where it fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO


def scratch() -> IO[bytes]:
    """A file without a name, gone when it is closed; in memory where no folder may be written."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        if not hasattr(os, "memfd_create"):
            raise
        return os.fdopen(os.memfd_create("convbench"), "w+b")


def write(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write ``path``, whole or part by part, by a temporary file beside it, flushed to the disk and renamed.

    Its folder is made when missing.

    Raises
    ------
    OSError
        With ``path`` as its file name, whatever failed; an earlier file of that name stands then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
