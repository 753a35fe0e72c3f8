"""How Numba compiles functions that only other compiled code calls: as far as their callers can take them in,
no further.

Numba makes optimised machine code of every function by itself, and its callers then take in its intermediate
code and optimise that again. Here the first half is left out.
"""

from __future__ import annotations

import ctypes
from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

# What a call from Python meets
_TYPE_ERROR = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value


class _Library(JITCodeLibrary):
    """Code that is only ever linked into its callers', as it comes from Numba: it
    is optimised and made native there.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Numba's, but nothing is made that could be called from outside."""

    _name = "linked_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        module, name = lowered.fndesc.lookup_module(), lowered.fndesc.qualname
        key = _dynfunc.make_function(module, name, "", _TYPE_ERROR, lowered.env, ())
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=key)
        return True


class Linking(Compiler):
    """Numba's compiler for ``algos.engine.jit.linked``."""

    def define_pipelines(self) -> list[Any]:
        (passes,) = super().define_pipelines()
        passes.passes = [(_Lowering if each is NativeLowering else each, why) for each, why in passes.passes]
        return [passes]
