"""The page of what each algorithm solves: cells are what was found right and
fast enough, empty ones are explained.
"""

from __future__ import annotations

from algos import get
from bench.record import Launch, Record
from bench.support import DIRECTIONS, KINDS, TYPES, cells, page, specs


def record(text: str, name: str, time_s: float, status: str = "ok") -> Record:
    launches = (
        (Launch(0, "2026-11-27T00:00:00+00:00", (time_s,) * 4, 1, 1e-3, 1e-4, 1e-4),)
        if status == "ok"
        else ()
    )
    reason = "" if status == "ok" else "off by one"
    return Record(text, name, 2, "m", "b", status, reason, max_error=0.0, error_ratio=0.0, launches=launches)


def test_every_direction_and_dimension_has_problems() -> None:
    columns = {(direction, f"{ndim}-D") for direction in DIRECTIONS for ndim in KINDS}
    assert set(specs().values()) == columns | {("type", dtype) for dtype in TYPES}


def test_a_cell_is_filled_by_what_was_right_and_not_far_behind() -> None:
    texts = {place: str(spec) for spec, place in reversed(specs().items())}
    ahead, behind = ("forward", "2-D"), ("input gradient", "2-D")
    forward, back, half = texts[ahead], texts[behind], texts["type", "float16"]
    names = ("im2col_gemm", "direct_shift", "fft")
    records = [
        record(forward, "im2col_gemm", 1e-3), record(forward, "direct_shift", 3e-3),
        record(forward, "fft", 30e-3), record(back, "fft", 1e-3),
        record(back, "direct_shift", 1e-3, "wrong"), record(half, "fft", 1e-3),
    ]  # fmt: skip
    found = cells(records, [get(name) for name in names], 2)
    assert found["im2col_gemm", ahead].ratio == 1 and found["direct_shift", ahead].ratio == 3
    assert "input gradient" in found["fft", behind].words
    assert found["direct_shift", behind].reason == "wrong: off by one"
    assert found["fft", ("type", "float16")].ratio == 1
    text = page(found, "a processor", 2)
    native, lowered = (next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
                       for name in ("im2col_gemm", "fft"))  # fmt: skip
    assert "**1**" in native and " 1 a " in lowered
    assert "| algorithm | float16 | bfloat16 |" in text and ": float32\n" in text
    assert ", int64, uint64: its roundings may change whole numbers" in text
    assert "`fft`, forward 2-D: 30 times as long as the fastest" in text and "a: input gradient" in text
