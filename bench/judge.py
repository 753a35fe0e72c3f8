"""The judge's process: it finds verdicts, and never runs nor imports an algorithm from outside.

It is asked like a worker, by lines of JSON. While it checks, its answers are orders for whoever runs the
algorithm; the controller carries them there and the answers back, until an answer is the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from algos.dtypes import real, whole
from algos.engine.quiet import quieten
from algos.spec import ConvSpec
from bench import perf_counter, trials
from bench.check import check
from bench.court import Described
from bench.opened import finite
from bench.text import printable
from bench.worker import enter

# Largest deviation of timed calls, by bytes of a part: beyond what another order of summation does to the
# largest result.
DEVIATION = {2: 2e-2, 4: 1e-4, 8: 1e-10}
WHOLE_DEVIATION = 1e-12


class _AbandonedError(Exception):
    """The algorithm can obey no more."""


class _Judge:
    """Reads requests, answers them, and gives orders in between."""

    def __init__(self, requests: Iterator[str], answers: Any) -> None:
        self._requests, self._answers = requests, answers
        self._number = 0

    def serve(self) -> None:
        self._answer(hello=True)
        for line in self._requests:
            request = self._read(line)
            start = perf_counter()
            try:
                reply = self._reply(request)
            except _AbandonedError:
                reply = {}
            except MemoryError:
                reply = {
                    "failure": "unsupported",
                    "reason": "cannot be judged: out of memory for the definition",
                }
            except Exception as error:
                reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
                reply = {"failure": "error", "reason": f"the judge failed: {reason}"}
            quieten()
            self._answer(spent_s=perf_counter() - start, **reply)

    def obey(self, order: str, **details: Any) -> dict[str, Any]:
        """Have the controller carry an order to the algorithm's process."""
        self._answer(order={"order": order, **details})
        reply = self._read(next(self._requests))
        if reply["do"] != "told":
            raise _AbandonedError
        return reply["answer"]

    def _read(self, line: str) -> dict[str, Any]:
        request = json.loads(line)
        self._number = request["number"]
        return request

    def _answer(self, **fields: Any) -> None:
        self._answers.write(json.dumps({"number": self._number, **fields}, allow_nan=False) + "\n")
        self._answers.flush()

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "check":
                return self._check(request)
            case "points":
                return {"points": _late(request).points.tolist()}
            case "late":
                return {"same": _same(request)}
            case _:  # an order was abandoned, and nothing waits for it
                return {}

    def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        about = Described(request["name"], request["family"], request["accuracy"], self.obey)
        verdict = check(request["spec"], about, request["threads"], request["seed"], judged=self)
        if not verdict.judged:
            return {"failure": "unsupported", "reason": verdict.reason}
        return {
            "verdict": bool(verdict.ok),
            "reason": verdict.reason,
            "max_error": finite(verdict.max_error),
            "error_ratio": finite(verdict.error_ratio),
            "workspace_seen_bytes": verdict.workspace_seen_bytes,
        }


def _late(request: dict[str, Any]) -> trials.Late:
    return trials.late(ConvSpec.parse(request["spec"]), request["seed"], request["launch"])


def _same(request: dict[str, Any]) -> bool:
    """Whether calls among and after the timed ones gave what the definition says."""
    spec, right = ConvSpec.parse(request["spec"]), _late(request)
    parts = [real(dtype).itemsize for dtype in (spec.in_dtype, spec.result_dtype)]
    most = WHOLE_DEVIATION if whole(spec.in_dtype) else DEVIATION[min(parts)]
    return all(
        right.error(np.array(values, np.float64).view(right.base.dtype), value) <= most
        for value, values in request["calls"]
    )


def main() -> None:
    """Started by the controller as a worker is."""
    with enter() as (requests, answers, _):
        _Judge(iter(requests), answers).serve()
