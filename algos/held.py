"""A property that is worked out once, without the lock of Python 3.11, which costs more than most of what is
held: two threads that ask at once both work it out.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 12):
    held = cached_property
else:

    class held:
        """Its first answer stands in the object's ``__dict__``, where it is found from then on."""

        def __init__(self, function):
            self.function, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner, name):
            self.name = name

        def __get__(self, one, owner=None):
            if one is None:
                return self
            found = one.__dict__[self.name] = self.function(one)
            return found
