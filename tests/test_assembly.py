"""No hot loop touches the stack: where whole vectors are moved there, half of all processes run at half of
their speed, those whose stack puts vectors across two lines.
"""

from __future__ import annotations

import platform
import re

import pytest

from algos.engine.target import simd as here
from tests.assembly import PLANTED, Loop, hot_loops

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads assembly of x86-64"
)

# One shape of each kernel, most of them compiled for other tests as well
KERNELS = [
    ("direct_channels", "1x64x14x14,32x64x3x3,p1"),
    ("direct_channels", "1x64x14x14,32x64x3x3,p1,weight_gradient"),
    ("direct_pixels", "1x64x14x14,64x64x1x1"),
    ("direct_pixels", "1x3x30x30,64x3x7x7,s2,p3"),
    ("depthwise", "1x16x14x14,16x1x3x3,p1"),
    ("depthwise", "1x16x14x14,16x1x3x3,p1,weight_gradient"),
    ("numba_direct", "1x16x14x14,16x16x3x3,p1"),
    ("numba_im2col", "1x16x14x14,16x16x3x3,p1"),
    ("numba_picture", "1x1x64x64,1x1x3x3,p1"),
    ("separable", "1x1x64x64,1x1x7x7,p3,rank1"),
    ("separable", "1x1x64x64,1x1x7x7,p3,s2,rank1"),
    ("winograd_f4", "1x64x14x14,64x64x3x3,p1"),
    ("fft_fused", "1x1x64x64,1x1x15x15,p7"),
    ("fft_fused", "1x1x10000,1x1x999"),
    ("direct_channels", "1x64x28x28,32x64x3x3,p1,s2,input_gradient"),
    ("depthwise", "1x16x80x80,16x1x3x3,p1,s2,input_gradient"),
]
# Other types, blocks, kernels and strides
SHAPES = [
    ("direct_channels", "1x64x14x14,64x64x3x3,p1"),
    ("direct_channels", "1x64x14x14,64x64x3x3,p1,weight_gradient"),
    ("direct_channels", "1x64x28x28,64x64x3x3,p1,s2,input_gradient"),
    ("direct_channels", "1x64x14x14,64x64x3x3,p1,float64"),
    ("direct_channels", "1x64x14x14,64x64x3x3,p1,int8>int32"),
    ("direct_channels", "1x64x14x14,64x64x3x3,p1,bfloat16"),
    ("direct_pixels", "1x64x14x14,64x64x1x1,float64"),
    ("direct_pixels", "1x64x14x14,64x64x1x1,int8>int32"),
    ("direct_pixels", "1x64x14x14,64x64x1x1,bfloat16"),
    ("depthwise", "1x16x14x14,16x1x3x3,p1,float64"),
    ("depthwise", "1x16x14x14,16x1x5x5,p2"),
    ("depthwise", "1x16x14x14,16x1x7x7,p3"),
    ("depthwise", "1x16x40x40,16x1x9x9,p4"),
    ("depthwise", "1x16x40x40,16x1x3x3,p2,d2"),
    ("depthwise", "1x16x14x14,16x1x3x3,p1,s2"),
    ("depthwise", "1x16x14x14,16x1x5x5,p2,s2"),
    ("depthwise", "1x16x40x40,16x1x3x3,s3"),
    ("depthwise", "1x16x40x40,16x1x4x4,s4"),
    ("depthwise", "1x16x40x40,16x1x3x3,s7"),
    ("depthwise", "1x16x14x14,16x1x3x3,p1,s2,weight_gradient"),
    ("numba_direct", "1x16x14x14,16x16x3x3,p1,float64"),
    *(("numba_picture", f"1x1x64x64,1x1x{k}x{k},p{k // 2}") for k in (2, 4, 5, 7, 9, 11, 15)),
    ("numba_picture", "1x1x64x64,1x1x7x7,p3,float64"),
    *(("separable", f"1x1x99x99,1x1x{k}x{k},p{k // 2},rank1") for k in (3, 5, 15, 31, 65)),
    ("separable", "1x1x99x99,1x1x25x25,p12,rank1,float64"),
    ("winograd_f2", "1x64x14x14,64x64x3x3,p1"),
    ("winograd_f2", "1x64x14x14,64x64x5x5,p2"),
    ("winograd_f2", "1x64x14x14,64x64x3x3,p1,int8>int32"),
    ("winograd_f4", "1x64x14x14,64x64x3x3,p1,float64"),
    ("winograd_f4", "1x64x14x14,64x64x3x1,p1x0"),
    ("winograd_f6", "1x64x14x14,64x64x3x3,p1"),
    ("fft_fused", "1x1x64x64,1x1x15x15,p7,float64"),
]


# What 16 registers do not do: elements picked from three and four vectors by tables; a kernel's weights
# beside the sums of its input's gradient; without the instructions of AVX, what lies outside of a plane, and
# the last rows of a gradient
EXCUSED = {
    "avx2": r"depthwise .*,(s[34]|s2,input_gradient)",
    "plain": r"depthwise .*|direct_channels .*,weight_gradient",
}


def named(loops: list[Loop], simd: str = "") -> list[str]:
    """Those that touch it and are not excused."""
    return [f"{case}: {kernel}, {count} multiply-adds, {len(stack)} of the stack, such as {stack[0]}"
            for case, kernel, count, stack in loops
            if stack and not re.fullmatch(EXCUSED.get(simd, ""), case)]  # fmt: skip


def test_no_hot_loop_here_touches_the_stack() -> None:
    """Of the code for this machine, which other tests need compiled as well."""
    loops, unused = hot_loops(KERNELS)
    assert not unused, "kernels that no case above needs"
    assert {loop.case.split()[0] for loop in loops} >= {name for name, _ in KERNELS} - {"numba_im2col"}
    assert not named(loops, here())


@pytest.mark.parametrize("simd", [width for width in ("avx512", "avx2", "plain") if width != here()])
def test_no_hot_loop_touches_the_stack_elsewhere(simd: str) -> None:
    loops, _ = hot_loops([KERNELS[2], KERNELS[8]], simd)
    assert {loop.case.split()[0] for loop in loops} == {"direct_pixels", "numba_picture"}
    assert not named(loops, simd)


@pytest.mark.exhaustive
@pytest.mark.parametrize("simd", ["avx512", "avx2", "plain"])
def test_no_hot_loop_of_any_shape_touches_the_stack(simd: str) -> None:
    loops, _ = hot_loops(KERNELS + SHAPES, simd)
    assert not named(loops, simd)


def test_a_kernel_of_more_sums_than_registers_is_named() -> None:
    loops, _ = hot_loops([(PLANTED, "")], "plain")
    (name, *_) = named(loops, "plain")
    assert name.startswith(PLANTED) and ".planted, 64 multiply-adds, " in name
