"""What measuring taught about the cost model: how much longer than its closed form an algorithm takes.

``convbench calibrate`` times about a hundred small problems on this machine and fits, by ridge regression of
the logarithm of measured over modelled time, how each algorithm departs from its closed form over the space
of problems; the numbers lie beside the wisdom. Where a machine was never calibrated, those of a machine like
it serve, which ship with the package (``priors.json``, one row a machine, ``convbench calibrate --row``).

The closed form knows an algorithm's operations, bytes, calls and passes of its chain. What is left over
changes slowly from one problem to its neighbours, as told by ``features``: how full the last vector of each
axis is, what lies beyond which cache, the work of a thread. So it is smoothed over them with a Gaussian
kernel, one part common to all algorithms, which follows the machine, and one of each.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from algos.contract import PLAIN_TYPES
from algos.host import caches, data_base, fingerprint
from algos.lower.chain import Chain
from algos.spec import ConvSpec
from algos.wisdom import keep_rows, rows_of

FILE_NAME = "calibration-2.json"  # the number is that of the features: others are another file
PRIORS = Path(__file__).with_name("priors.json")
LANE_BYTES = 64
WIDTH = 0.03  # of the kernel: exp(-WIDTH * squared distance)
FEW = 40  # problems: fewer do not fill the space
OTHERS = ""  # stands for every algorithm that was not measured


def features(spec: ConvSpec, threads: int) -> tuple[float, ...]:
    """Where a problem lies, mostly in doublings; what changes code paths lies some of them apart."""
    log2, size, sizes = math.log2, spec.in_dtype.itemsize, caches()
    wide = LANE_BYTES // size
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    columns, pixels, taps = spec.output_size[-1], math.prod(spec.output_size), math.prod(spec.kernel)
    apart = (
        (3, spec.direction == "input_gradient"), (9, spec.direction == "weight_gradient"),
        (3, spec.ndim == 1), (3, spec.ndim == 3), (3, threads > 1), (3, spec.dtype not in PLAIN_TYPES),
        (2, size == 8), (2, max(spec.stride) > 1), (2, max(spec.dilation) > 1),
        (2, any(map(any, spec.padding))), (2, 1 < spec.groups == spec.in_channels),
        (2, spec.rank is not None), (1.5, taps == 1),
    )  # fmt: skip
    return (
        *map(log2, (inputs, outputs, columns, pixels / columns, spec.kernel[-1], taps / spec.kernel[-1],
                    spec.groups, max(1, spec.batch))),
        log2(max(1, spec.macs)) / 2,
        *(log2(n / (-(-n // wide) * wide)) for n in (columns, outputs, inputs, pixels)),
        *(max(0.0, log2(spec.min_bytes / limit)) for limit in (sizes["L2"], sizes["L3"] / 4)),
        *(float(distance * is_so) for distance, is_so in apart),
    )  # fmt: skip


class Fit:
    """What one machine taught.

    Parameters
    ----------
    machine : dict
        The facts by which the row of a like machine is chosen: ``simd``, ``cores``, ``caches_bytes``, ``id``.
    centres : array (problems, features)
    weights : dict
        By algorithm a constant and a number for each centre; ``OTHERS`` stands for any other algorithm.
    error : float
        Standard deviation of the logarithm of measured over predicted time, of problems that were left out of
        the fit.
    """

    def __init__(
        self, machine: dict[str, Any], centres: np.ndarray, weights: dict[str, np.ndarray], error: float = 0.0
    ) -> None:
        self.machine, self.centres, self.weights, self.error = machine, centres, weights, error
        self._at = {name: index for index, name in enumerate(weights)}
        self._all = np.array([*weights.values()]) if weights else np.zeros((0, 1))
        self._last: tuple[Any, list[float]] = (None, [])

    def corrections(self, spec: ConvSpec, threads: int) -> list[float]:
        """Logarithms of measured over modelled time, in the order of ``weights``; those of the last problem
        are kept, which all algorithms ask for.
        """
        asked, found = self._last  # at once: another thread may ask for another spec meanwhile
        if asked != (spec, threads):
            away = self.centres - features(spec, threads)
            near = np.exp(-WIDTH * np.einsum("ij,ij->i", away, away))
            # Not by BLAS, which might wake its threads for it
            found = (self._all[:, 0] + np.einsum("ij,j->i", self._all[:, 1:], near)).tolist()
            self._last = (spec, threads), found
        return found

    def seconds(self, way: Chain, threads: int) -> float:
        """The model's time of a way, corrected."""
        modelled = max(way.seconds(threads), 1e-9)
        if not self._at or way.algorithm.device != "cpu":
            return modelled
        at = self._at.get(way.algorithm.name, self._at[OTHERS])
        return modelled * math.exp(self.corrections(way.spec, threads)[at])

    @classmethod
    def read(cls, row: dict[str, Any]) -> Fit:
        """From JSON.

        Raises
        ------
        ValueError, KeyError, TypeError
            Where it is no such row.
        """
        centres = np.array(row["centres"], float)
        weights = {name: np.array(values, float) for name, values in row["weights"].items()}
        if OTHERS not in weights or {len(values) for values in weights.values()} != {1 + len(centres)}:
            raise ValueError("a row whose numbers do not fit each other")
        if centres.ndim != 2 or centres.shape[1] != len(features(ConvSpec.parse("8x8,3x3"), 1)):
            raise ValueError("a row of other features")
        return cls(dict(row["machine"]), centres, weights, float(row["error"]))

    def row(self) -> dict[str, Any]:
        """JSON-ready, as ``read`` takes it."""
        rounded = lambda values: [float(f"{v:.4g}") for v in values]  # noqa: E731
        return {"machine": self.machine, "error": round(self.error, 4),
                "centres": [rounded(centre) for centre in self.centres.tolist()],
                "weights": {name: rounded(own.tolist()) for name, own in self.weights.items()}}  # fmt: skip


NONE = Fit({}, np.zeros((0, 0)), {})


def fit_of_machine() -> Fit:
    """What was measured on this machine, or on the one of the shipped ones that is most like it."""
    return _fit(fingerprint()["id"])


def anew() -> None:
    """Read again what was calibrated when it is asked for next."""
    _fit.cache_clear()
    calibrations.cache_clear()


def path() -> Path:
    return data_base() / FILE_NAME


@cache
def _fit(identity: str) -> Fit:
    return calibrations().get(identity) or prior(fingerprint())


@cache
def calibrations() -> dict[str, Fit]:
    """What lies beside the wisdom, by machine: of this one, and of others that were imported; what is no
    calibration is left out.
    """
    found = {}
    for identity, row in rows_of(FILE_NAME).items():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found[identity] = Fit.read(row)
    return found


def keep(rows: dict[str, dict[str, Any]]) -> None:
    """Put rows beside the wisdom; errors as ``keep_rows``."""
    keep_rows(FILE_NAME, rows)
    anew()


def is_calibrated() -> bool:
    """Whether this machine was measured, and not by a few shapes alone."""
    own, shipped = fit_of_machine(), prior(fingerprint())
    return own is not shipped and len(own.centres) >= len(shipped.centres) + FEW


@cache
def priors() -> tuple[Fit, ...]:
    """What ships with the package."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return tuple(map(Fit.read, json.loads(PRIORS.read_text())))
    return ()


def prior(about: dict[str, Any]) -> Fit:
    """Of the shipped and the imported rows that of the machine most like ``about``: of its instruction set if
    there is one, then nearest in cores and caches.
    """
    others = (fit for identity, fit in calibrations().items() if identity != about.get("id"))
    return min((*priors(), *others), key=lambda one: unlike(about, one.machine), default=NONE)


def unlike(mine: dict[str, Any], its: dict[str, Any]) -> tuple[bool, float]:
    """How much two machines differ; the less the better."""
    try:
        sizes = [(mine["cores"], its["cores"])]
        sizes += [(mine["caches_bytes"][name], its["caches_bytes"][name]) for name in ("L1d", "L2", "L3")]
        return mine["simd"] != its["simd"], sum(abs(math.log2(a / b)) for a, b in sizes)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # whose facts nobody knows
        return True, math.inf
