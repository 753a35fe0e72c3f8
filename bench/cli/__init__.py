"""convbench: one function per command, its arguments beside it. Data goes to stdout, progress and errors to
stderr.

Exit codes: 0 fine, 1 a wrong result or a regression, 2 bad usage or nothing done, 3 undecided, 130
interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from bench.cli.arguments import parser
from bench.cli.asking import LIST, PICK, SUITES
from bench.cli.dueling import DUEL, TWINS
from bench.cli.measuring import CHECK, RUN
from bench.cli.networks import NET
from bench.cli.output import complain, open_streams, silence
from bench.cli.picking import CALIBRATE, REGRET, WISDOM
from bench.cli.storing import COMPARE, HISTORY, IMPORT, MERGE, REPORT
from bench.cli.training import TRAIN


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    open_streams()
    arguments = parser(COMMANDS.values()).parse_args(argv)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()  # a full disk shows here
        return code
    except KeyboardInterrupt as error:
        complain(": ".join(["interrupted", *map(str, error.args)]))  # what is kept, and how to go on
        return 130
    except BrokenPipeError:  # the reader of stdout has seen enough
        silence(sys.stdout)
        return 0
    except Exception as error:
        with suppress(OSError):
            sys.stdout.flush()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            silence(sys.stdout)  # or Python would complain once more at its end
        if os.environ.get("CONVBENCH_DEBUG"):
            raise
        complain(_words(error))
        return 2


def _words(error: Exception) -> str:
    """An error in one line: what the user can change, or that it is a bug."""
    if isinstance(error, OSError):
        what = "stdout" if error.filename is None and error.errno == errno.ENOSPC else error.filename
        return f"cannot use {what}: {error.strerror}" if what and error.strerror else str(error)
    message = str(error) or type(error).__name__
    if isinstance(error, ValueError) or type(error).__name__ == "StoreError":
        return message
    return f"unexpected {type(error).__name__}: {message} (set CONVBENCH_DEBUG=1 for the traceback)"


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # unwinds, so that the workers are ended


# In the order in which they are listed.
COMMANDS = {
    command.name: command
    for command in (
        LIST, SUITES, CHECK, RUN, NET, REPORT, HISTORY, PICK, CALIBRATE, REGRET, WISDOM, COMPARE, DUEL, TWINS,
        MERGE, IMPORT, TRAIN,
    )
}
