"""Innermost loops of the machine code that Numba makes of kernels, for any x86-64: nothing of it is run.

``hot_loops`` asks a process of its own, ``python -m tests.assembly NAME SPEC [NAME SPEC ...]``, which
compiles what the algorithm needs for the problem, or takes it from the cache, and prints the loops as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import typeof
from numba.core.registry import CPUDispatcher

from algos.engine import jit

# What Numba is told of the processor, by the vectors that our code takes then
PROCESSORS = {
    "avx512": ("icelake-server", "avx512f avx512vl avx512bw avx512dq avx512cd avx512vnni avx2 fma f16c sse2"),
    "avx2": ("haswell", "avx2 avx fma f16c sse2"),
    "plain": ("x86-64", "sse2"),
}  # fmt: skip
PLANTED = "planted"  # instead of an algorithm's name: a kernel with more sums than registers
VECTOR = re.compile(r"%[xyz]mm\d")
# Instructions on vectors, floating or whole; those on one number end with another letter
FUSED = re.compile(r"vfn?m(add|sub)\d+p[sd]|v?pdpbusds?|v?pmaddwd|vpdpwssds?|vdpbf16ps")
PRODUCT, SUM = re.compile(r"v?mulp[sd]"), re.compile(r"v?(add|sub)p[sd]")
FEW = 4  # multiply-adds: what has fewer is the end of a row, or sums up what a loop left
Blocks = dict[str, tuple[list[str], list[str]]]  # by label: instructions, and labels of what may follow


class Loop(NamedTuple):
    """An innermost loop that multiplies and adds vectors.

    Attributes
    ----------
    case : str
        Algorithm and problem.
    kernel : str
        The function that was compiled.
    multiply_adds : int
        Instructions.
    stack : list of str
        Instructions that move vectors to or from the stack.
    """

    case: str
    kernel: str
    multiply_adds: int
    stack: list[str]


def hot_loops(cases: Sequence[tuple[str, str]], simd: str | None = None) -> tuple[list[Loop], list[str]]:
    """Loops of what (algorithm, problem) need, and the names of all kernels of ``algos.cpu`` that none does;
    for this machine where ``simd`` is None.
    """
    environment = dict(os.environ)
    if simd:
        name, features = PROCESSORS[simd]
        environment |= {"CONVBENCH_SIMD": simd, "NUMBA_CPU_NAME": name,
                        "NUMBA_CPU_FEATURES": ",".join(f"+{one}" for one in features.split())}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.assembly", *(word for case in cases for word in case)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loops, unused = json.loads(done.stdout)
    return [Loop(*loop) for loop in loops], unused


def blocks_of(lines: list[str]) -> Blocks:
    """Basic blocks of a function."""
    found: Blocks = {}
    label, block, reached = "start", [], True
    for number, line in enumerate(lines):
        if name := re.match(r"([.\w$]+):", line):
            if reached:
                found[label] = block, [name[1]]
            label, block, reached = name[1], [], True
            continue
        text = line.split("#")[0].strip()
        if not text or text.startswith("."):
            continue
        if not reached:
            label, block, reached = f"after {number}", [], True
        block.append(text)
        op, _, rest = text.partition("\t")
        if op.startswith("j"):
            found[label] = block, [] if rest.startswith("*") else [rest.strip()]
            reached = False
            if op != "jmp":
                found[label][1].append(f"after {number}")
                label, block, reached = f"after {number}", [], True
        elif op.startswith("ret") or op == "ud2":
            found[label], reached = (block, []), False
    if reached:
        found[label] = block, []
    return found


def edges_back(blocks: Blocks) -> Iterator[tuple[str, str]]:
    """Edges to a block that the search in depth is still following."""
    open_: dict[str, bool] = {}
    for root in blocks:
        if root in open_:
            continue
        open_[root] = True
        path = [(root, iter(blocks[root][1]))]
        while path:
            label, following = path[-1]
            one = next(following, None)
            if one is None:
                open_[label] = False
                path.pop()
            elif one in blocks and one not in open_:
                open_[one] = True
                path.append((one, iter(blocks[one][1])))
            elif open_.get(one):
                yield label, one


def innermost(blocks: Blocks) -> Iterator[list[str]]:
    """The instructions of loops that hold no other: of all blocks between an edge back and its target."""
    before: dict[str, list[str]] = {label: [] for label in blocks}
    for label, (_, following) in blocks.items():
        for one in following:
            before.get(one, []).append(label)
    bodies: dict[str, set[str]] = {}
    for end, header in edges_back(blocks):
        body, left = bodies.setdefault(header, {header}), [end]
        while left:
            if (label := left.pop()) not in body:
                body.add(label)
                left += before[label]
    for header, body in bodies.items():
        if not body & (bodies.keys() - {header}):
            yield [line for label in blocks if label in body for line in blocks[label][0]]


def loops_of(assembly: str) -> Iterator[tuple[int, list[str]]]:
    """Of all innermost loops how many multiply-adds they hold, and what touches the stack with vectors."""
    for text in re.split(r"\n\s*\.type\s+", assembly)[1:]:
        name = text.partition(",")[0]
        lines = text.partition(f"\n{name}:")[2].splitlines()
        framed = any(re.match(r"\s*movq\s+%rsp, %rbp", line) for line in lines)
        stack = re.compile(r"\((%rsp|%rbp)\b" if framed else r"\(%rsp\b")
        for body in innermost(blocks_of(lines)):
            ops = [re.sub(r"^\{\w+\}\s*", "", line).partition("\t")[0] for line in body]
            fused, products, sums = (
                sum(kind.fullmatch(op) is not None for op in ops) for kind in (FUSED, PRODUCT, SUM)
            )
            yield fused + min(products, sums), [o for o in body if VECTOR.search(o) and stack.search(o)]


compiled = jit.compiled


class Unrun(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """Compiles for what it is called with, and runs nothing: it may be no code for this machine."""

    made: ClassVar[list[Any]] = []

    @classmethod
    def compiled(cls, **flags: Any) -> Callable[[Callable], Any]:
        """Instead of ``algos.engine.jit.compiled``."""

        def decorate(function: Callable) -> Any:
            made = compiled(**flags)(function)
            made.__class__ = cls
            cls.made.append(made)
            return made

        return decorate

    def __call__(self, *arguments: Any) -> int:
        self.compile(tuple(map(typeof, arguments)))
        return 0


def plant() -> None:
    """Compile a kernel whose 16 x 4 sums no machine has the registers for."""
    from algos.engine.simd import address, outer_rows

    @Unrun.compiled()
    def planted(w, x, y, k):
        outer_rows(address(w, 0), None, address(x, 0), None, k, address(y, 0), 64, False, 16, 4)

    planted(*[np.zeros(1, np.float32)] * 3, 1)


def main(words: list[str]) -> None:
    """Print hot loops and the kernels of ``algos.cpu`` that nothing needed."""
    jit.compiled = Unrun.compiled
    from algos import ConvSpec, algorithms, get
    from algos.plans import prepared

    algorithms()  # finds, and imports, all
    known, loops = set(), []
    for name, text in zip(words[::2], words[1::2], strict=True):
        if name == PLANTED:
            plant()
        else:
            spec = ConvSpec.parse(text)
            weights = np.ones(spec.weight_shape, spec.w_dtype)
            prepared(spec, None if spec.direction == "weight_gradient" else weights, get(name), 1)
        for kernel in Unrun.made:
            function = kernel.py_func
            for signature, overload in kernel.overloads.items():
                if (kernel, signature) in known:
                    continue
                known.add((kernel, signature))
                # What a cache holds has no assembly, but the code that becomes one
                code, target = overload.library._get_module_for_linking(), overload.library._codegen._tm
                where = f"{function.__module__}.{function.__name__}"
                found = loops_of(str(target.emit_assembly(code)))
                loops += [Loop(f"{name} {text}", where, *loop) for loop in found if loop[0] >= FEW]
    used = {kernel for kernel, _ in known}
    unused = [k for k in Unrun.made if k not in used and k.__module__.startswith("algos.cpu")]
    json.dump([loops, [kernel.py_func.__name__ for kernel in unused]], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
