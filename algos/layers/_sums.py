"""Compiled sums of elements that lie side by side: in vectors, and from one block to the next in float64."""

from __future__ import annotations

from algos.engine.jit import linked

BLOCK = 1 << 10  # elements whose sum is taken in their own type
# Sums in any order; NaN and infinity stay what they are
FLAGS = {"fastmath": {"reassoc", "nsz", "contract"}, "error_model": "numpy"}


@linked(**FLAGS)
def total(x):
    """The sum of x."""
    found = 0.0
    for first in range(0, len(x), BLOCK):
        block = x[first : first + BLOCK]
        part = x.dtype.type(0)
        for i in range(len(block)):
            part += block[i]
        found += part
    return found


@linked(**FLAGS)
def squares(x, centre):
    """The sum of the squares of x - centre."""
    found, centre = 0.0, x.dtype.type(centre)
    for first in range(0, len(x), BLOCK):
        block = x[first : first + BLOCK]
        part = x.dtype.type(0)
        for i in range(len(block)):
            part += (block[i] - centre) * (block[i] - centre)
        found += part
    return found


@linked(**FLAGS)
def products(x, centre, y):
    """The sum of the products of x - centre and y."""
    found, centre = 0.0, x.dtype.type(centre)
    for first in range(0, len(x), BLOCK):
        block, other = x[first : first + BLOCK], y[first : first + BLOCK]
        part = x.dtype.type(0)
        for i in range(len(block)):
            part += (block[i] - centre) * other[i]
        found += part
    return found
