"""Records for the tests of reports: measured by nobody, so that every figure is known."""

from __future__ import annotations

from bench.record import Launch, Record

SPEC = "1x1x64x64,1x1x3x3,p1"
MACHINE = {"id": "m1", "cpu": "Example CPU", "cores": 2, "simd": "AVX2", "caches_bytes": {"L1d": 32768}}
RATES = {"1": 50e9, "2": 100e9}
PEAKS = {
    "flops_per_s": {"float32": RATES, "float64": {"1": 25e9, "2": 50e9}},
    "bytes_per_s": {
        level: {"1": rate, "2": 1.5 * rate} for level, rate in (("L1d", 2e11), ("L2", 1e11), ("memory", 1e10))
    },
}
JITTER = (1.0, 1.01, 0.99)  # launches of one case
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "a|b\nnew line`code`[x](http://example.org)",
    "$\\alpha$ \x1b[31mred\x07 \u202eflipped",
    "_leading_underscore",
    "ünïcode 日本語",
    "name_of_more_than_one_hundred_characters_" * 3,
)


def record(algorithm="fft", time_s=1e-3, spec=SPEC, jitter=JITTER, status="ok", **changes):
    """A record whose launches took ``time_s`` times ``jitter``, in turns with those of its spec."""
    first = changes.pop("first_run_s", None)
    first = first or 1.5 * time_s
    launches = tuple(
        Launch(i, f"2025-01-01T10:00:0{i}+00:00", (time_s * factor,) * 8, 3, 0.2, 1e-4, first, turns=(1,) * 8,
               together=f"{spec}|{i}")
        for i, factor in enumerate(jitter)
    )  # fmt: skip
    values = {
        "threads": 2,
        "machine": "m1",
        "build": "b1",
        "family": "fft",
        "error_ratio": 0.1,
        "workspace_bytes": 4096,
    }
    values |= {"launches": launches} if status == "ok" else {"reason": "it differs", "error_ratio": None}
    return Record(spec=spec, algorithm=algorithm, status=status, **(values | changes))


def sweep(names=("fft", "numba_direct", "im2col_gemm"), sizes=(64, 256), kernels=(3, 7), **changes):
    """A small grid in which every algorithm wins somewhere."""
    return [
        record(
            name,
            1e-9 * s * s * k * (1 + (i + s // 64 + k) % len(names)),
            f"1x1x{s}x{s},1x1x{k}x{k},p{k // 2}",
            **changes,
        )
        for s in sizes
        for k in kernels
        for i, name in enumerate(names)
    ]


def layers(count):
    return [
        record(name, 1e-3 * (1 + i % 7) * f, f"1x{16 + i}x14x14,{32 + i}x{16 + i}x3x3,p1")
        for i in range(count)
        for name, f in (("a", 1), ("torch", 1.5), ("b", 1.01))
    ]
