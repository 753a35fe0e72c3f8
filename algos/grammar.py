"""The words of a spec's text, and the checks that its fields share."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from algos.dtypes import BRAINS, PAIRS, QUADS, TYPES, kind, limits, whole

DIRECTIONS = ("forward", "input_gradient", "weight_gradient")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
ACTIVATIONS = ("none", "relu", "relu6", "sigmoid", "silu")
WORDS = (*DIRECTIONS, *PADDING_MODES, *TYPES, "flip", "psame", "psame_lower", "pfull", "constant:0", "bias",
         *ACTIVATIONS[1:])  # fmt: skip

SHOWN = 60  # characters of a caller's value in a message
# Of the largest number, in text and in fields alike; sums and products of sizes are checked where they are
# made
DIGITS = 18
_TOO_LARGE = 10**DIGITS
_NUMBER = rf"[0-9]{{1,{DIGITS}}}"
SHAPE = re.compile(rf"{_NUMBER}(x{_NUMBER})*")
_FLOAT = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?")
CHARACTERS = 400  # of a constant; the largest float64 has 309 digits
_INTS = re.compile(rf"([sd])({_NUMBER}(?:x{_NUMBER})*)")
_PAIR = rf"-?{_NUMBER}(?::-?{_NUMBER})?"
_PADDING = re.compile(rf"p({_PAIR}(?:x{_PAIR})*|same|same_lower|full)")
_RANK = re.compile(rf"rank({_NUMBER})")
_ZERO_POINTS = re.compile(rf"zp(-?{_NUMBER}):(-?{_NUMBER})")


class SpecError(ValueError):
    """The text or the fields describe no convolution; the message says what to change."""


def parse_option(text: str, ndim: int) -> tuple[str, Any]:
    """The field that an option sets, and its value."""
    if match := _INTS.fullmatch(text):
        values = tuple(int(n) for n in match[2].split("x"))
        return {"s": "stride", "d": "dilation"}[match[1]], broadcast(text, values, ndim)
    if match := _PADDING.fullmatch(text):
        if match[1][0].isalpha():
            return "padding", match[1]
        pairs = [tuple(int(n) for n in entry.split(":")) for entry in match[1].split("x")]
        return "padding", broadcast(text, tuple((p[0], p[-1]) for p in pairs), ndim)
    if match := _RANK.fullmatch(text):
        return "rank", int(match[1])
    if text in DIRECTIONS:
        return "direction", text
    if text == "flip":
        return "flip", True
    if text in PADDING_MODES or text.startswith("constant:"):
        return "padding_mode", text
    if text == "bias":
        return "bias", True
    if text in ACTIVATIONS[1:]:
        return "activation", text
    if match := _ZERO_POINTS.fullmatch(text):
        return "zero_points", (int(match[1]), int(match[2]))
    if re.split("[*>]", text)[0] in TYPES:
        return "dtype", text
    advice = (
        "use s2, p1, psame, psame_lower, pfull, d2, rank1, a dtype, a padding mode, a direction, flip, bias, "
        "an activation or zp3:0"
    )
    raise SpecError(f"unknown option {text!r}: {meant(text, WORDS, advice)}")


def constant(text: str, dtype: np.dtype) -> Fraction:
    """The number V of ``constant:V``: exact in a whole-number type, rounded once to a float type, to even
    when halfway.

    Rational arithmetic throughout: a whole number never passes through a float, and no state of the CPU's
    takes part.
    """
    named = f"constant:{text[:20]}"
    if len(text) > CHARACTERS or not _FLOAT.fullmatch(text):
        raise SpecError(
            f"{named!r} is not constant:V with a finite number V of at most {CHARACTERS} characters"
        )
    value = Fraction(text)
    if whole(dtype):
        info = np.iinfo(dtype)
        if value.denominator != 1:
            raise SpecError(f"{named!r} does not fit {dtype}: use a whole number")
        if not info.min <= value <= info.max:
            raise SpecError(f"{named!r} does not fit {dtype}: use {info.min} to {info.max}")
        return value
    value = _rounded(value, dtype)
    if abs(value) > Fraction(float(limits(dtype).max)):
        raise SpecError(f"{named!r} does not fit {dtype}: use a smaller number")
    return value


def _rounded(value: Fraction, dtype: np.dtype) -> Fraction:
    """The nearest number of a float type without a largest exponent."""
    info = limits(dtype)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent  # now 2**exponent <= abs(value) < 2**(exponent + 1)
    unit = Fraction(2) ** (max(exponent, int(info.minexp)) - int(info.nmant))
    return round(value / unit) * unit


def constant_text(value: Fraction, dtype: np.dtype) -> str:
    """The shortest text that ``constant`` reads as ``value``; whole numbers in full up to 16 digits."""
    if whole(dtype) or (value.denominator == 1 and abs(value) < 10**16):
        return str(int(value))
    texts = (f"{float(value):.{digits}g}" for digits in range(1, 18))
    return next(text for text in texts if _rounded(Fraction(text), dtype) == value)


def shown(value: Any) -> str:
    """Whatever a caller gave, in one short line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # digits beyond Python's limit, lists in lists without end, or the caller's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def checked_dtype(given: Any) -> str:
    """Canonical text of a type: ``a`` for x, w and y, ``a>c`` for another of y, ``a*b>c`` for another of w.
    """
    text = given
    if not isinstance(text, str):
        try:
            text = "" if text is None else np.dtype(text).name
        except Exception:  # NumPy has many
            text = ""
    return _checked_text(text, shown(given) if text is not given else "")


@lru_cache(maxsize=1 << 10)
def _checked_text(text: str, given: str) -> str:
    """The same of a type's name; ``given`` is what it was told by, unless that was the name."""
    if text in (PAIRS, *BRAINS, QUADS):
        return text
    operands, mixed, target = text.partition(">")
    first, differ, second = operands.partition("*")
    names = (first, second if differ else first, target if mixed else first)
    if any(name not in TYPES for name in names):
        advice = "or in>out such as int8>int32, or x*w>out such as uint8*int8>int32"
        raise SpecError(f"unknown dtype {given or shown(text)}: use {', '.join(TYPES)}, {advice}")
    x, w, y = map(np.dtype, names)
    if x != w and not whole(x):
        raise SpecError(f"dtype {text!r} mixes floats: give x and w one type")
    if any((kind(a) in "fc" and kind(a) != kind(y)) or whole(a) != whole(y) for a in (x, w)) or not (
        np.can_cast(x, y, "safe") and np.can_cast(w, y, "safe")
    ):
        raise SpecError(
            f"dtype {text!r} would lose values: the last type must hold every value of the others"
        )
    if x != w:
        return f"{first}*{second}>{y.name}"
    return first if x == y else f"{first}>{y.name}"


def checked_int(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of at most ``DIGITS`` digits; booleans and fractions are none."""
    if type(value) is int and -_TOO_LARGE < value < _TOO_LARGE and (least is None or value >= least):
        return value  # as nearly all are: each spec has a dozen
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise SpecError(f"{name} is {shown(value)}: it must be a whole number")
    if abs(number) >= _TOO_LARGE:
        raise SpecError(f"{name} is {shown(value)}: use at most {DIGITS} digits")
    if least is not None and number < least:
        raise SpecError(f"{name} is {number}: give a whole number of at least {least}")
    return number


def is_several(value: Any) -> bool:
    """Whether it holds one entry per axis; text and arrays without an axis do not."""
    if type(value) in (tuple, int):  # as nearly all are
        return type(value) is tuple
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def checked_ints(name: str, values: Any) -> tuple[int, ...]:
    """A tuple of whole numbers."""
    if not is_several(values):
        raise SpecError(f"{name} is {shown(values)}: give a tuple of whole numbers")
    return tuple(checked_int(name, v) for v in values)


def per_axis(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """One number for every axis, from one number or one per axis."""
    if not is_several(value):
        return (checked_int(name, value),) * ndim
    if len(value) != ndim:
        raise SpecError(f"{name} has {len(value)} entries for {ndim} axes: give one number, or one per axis")
    return checked_ints(name, value)


def broadcast(text: str, values: tuple, ndim: int) -> tuple:
    """One entry for every axis, from an option's text."""
    if len(values) not in (1, ndim):
        raise SpecError(
            f"option {text!r} has {len(values)} entries for {ndim} axes: give one, or one per axis"
        )
    return values * (ndim if len(values) == 1 else 1)


def padding_pairs(padding: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """(before, after) of every axis, from a number, one per axis, or pairs."""
    entries: Any = padding if is_several(padding) else [padding] * ndim
    if len(entries) != ndim:
        raise SpecError(f"padding has {len(entries)} entries for {ndim} axes: give one int or pair per axis")
    pairs = []
    for entry in entries:
        pair = checked_ints("padding", entry) if is_several(entry) else (checked_int("padding", entry),) * 2
        if len(pair) != 2:
            raise SpecError(
                f"padding entry {shown(entry)} is no pair: give two whole numbers, (before, after)"
            )
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def times(values: Any) -> str:
    """``3x3`` for a tuple, the number itself for one number."""
    return "x".join(map(str, values)) if isinstance(values, tuple | list) else str(values)


def collapse(values: Sequence[Any]) -> str:
    """``3`` when every axis agrees, else ``3x5``."""
    return str(values[0]) if len(set(values)) == 1 else times(list(values))


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """Advice on a name that is not ``known``: ``did you mean quick?``, or ``otherwise`` where none is close.
    """
    names = {other.lower(): other for other in known}
    close = (
        difflib.get_close_matches(name.lower(), names)
        or [n for n in names if len(name) > 2 and name.lower() in n][:3]
    )
    return f"did you mean {' or '.join(names[n] for n in close)}?" if close else otherwise
