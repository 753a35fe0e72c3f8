"""Findings in plain words: the paragraph that opens a report, and what a picture shows.

Everything rests on ``findings.ranking``: no sentence claims more than its verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from bench import mood
from bench.twins import NOT_MEASURED, rates
from reports.findings.advice import favourites, runs
from reports.findings.costs import Stretch
from reports.findings.frame import GROUP, tuples
from reports.findings.ranking import auto_results, ranked, winners
from reports.style import ratio_text

MOST_NAMED = 4  # algorithms or kernels in a sentence
SENSIBLE = 20  # launches


# ---- the machine -------------------------------------------------------------------------------------------


def calm(frame: pd.DataFrame) -> str:
    """One line on how calm the machine was while these records were taken."""
    known = frame[["left_out", "steal", "load", "loop"]].dropna()
    return mood.calm_text([tuple(row) for row in known.itertuples(index=False, name=None)])


def false_alarms(machines: Iterable[str]) -> str:
    """One line on the rate at which this machine calls identical code different, where that was measured."""
    found = [known.text() for machine in machines if (known := rates(machine))] or [NOT_MEASURED]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in found)


# ---- in plain words ----------------------------------------------------------------------------------------


def in_short(frame: pd.DataFrame) -> list[str]:
    """A paragraph for each (machine, threads, cold): what to use, how far behind the
    others are, and what is not decided.
    """
    found = winners(frame)
    groups = [(key, part) for key, part in found.groupby(GROUP, sort=False)]
    shown = []
    for key, best in groups:
        where = _where(key, found) if len(groups) > 1 else ""
        rows = ranked(frame)
        rows = rows[(rows[GROUP] == list(key)).all(axis=1)]
        autos = auto_results(frame)
        autos = autos[(autos[GROUP] == list(key)).all(axis=1)]
        parts = [_advice(best, rows), _peers(best), _auto(autos), _decided(best)]
        shown.append(where + " ".join(filter(None, parts)))
    return shown


def _where(key: tuple[Any, ...], found: pd.DataFrame) -> str:
    machine, threads, cold = key
    parts = [str(machine)] if found["machine"].nunique() > 1 else []
    parts += [f"{threads} thread{'s' if threads != 1 else ''}"] if found["threads"].nunique() > 1 else []
    parts += ["cold caches" if cold else "warm caches"] if found["cold"].nunique() > 1 else []
    return f"With {', '.join(parts)}: "


def _advice(best: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Use X for 3x3, Y from 11x11 on."""
    if best.empty:
        return ""
    chosen = favourites(best, rows)
    uses: dict[str, list[str]] = {}
    behind: dict[str, float] = {}
    for words, run in runs(chosen):
        name, first, last = chosen[run[0]][0], run[0][2], run[-1][2]
        mine = sorted(kind for kind in chosen if kind[0] == words)
        text = first if len(run) == 1 else f"{first} and {last}" if len(run) == 2 else f"{first} to {last}"
        if len(run) > 1 and run[-1] == mine[-1] and run[0] != mine[0]:
            text = f"{first} on"
        uses.setdefault(name, []).append(f"{text}{words}")
        behind[name] = max(behind.get(name, 1.0), *(chosen[kind][1] for kind in run))
    phrases = []
    for name, texts in uses.items():
        alone = len(texts) == 1 and texts[0].endswith(" on")
        loss = f" (up to {_times(behind[name])} times the fastest)" if behind[name] > 1 else ""
        phrases.append(f"{name} {'from' if alone else 'for'} {_listed(texts)}{loss}")
    if len(uses) == 1 and len(chosen) > 1:
        name = next(iter(uses))
        more = f", at most {_times(behind[name])} times the fastest" if behind[name] > 1 else ""
        return f"Use {name} for all of these{more}."
    return f"Use {_listed(phrases[:2 * MOST_NAMED])}."


def _peers(best: pd.DataFrame) -> str:
    """Peers are 2 to 9 times as slow."""
    known = best["own_over_peer"].dropna()
    if known.empty:
        return ""
    span = " to ".join(dict.fromkeys([_times(known.min()), _times(known.max())]))
    text = f"The best of the peers (other people's libraries) takes {span} times as long as the best of ours"
    wins = best[best["peer"]]
    if len(wins):
        names = _listed(list(dict.fromkeys(wins["winner"]))[:MOST_NAMED])
        text += f"; a peer is fastest on {len(wins)} of {len(best)} ({names})"
    return f"{text}."


def _auto(autos: pd.DataFrame) -> str:
    """How good what `auto` chose was."""
    if autos.empty:
        return ""
    behind = autos[autos["behind"].astype(bool)]
    if behind.empty:
        return "auto, the automatic choice, is nowhere surely slower than the best of ours."
    worst = behind.sort_values("ratio").iloc[-1]
    return (f"auto, the automatic choice, is surely slower than the best of ours on {len(behind)} of "
            f"{len(autos)}, at worst {_times(worst['ratio'])} times as slow ({worst['spec']}).")  # fmt: skip


def _decided(best: pd.DataFrame) -> str:
    """N of M are undecided because ..."""
    counts, total = Counter(best["verdict"]), len(best)
    has = "has" if counts["winner"] == 1 else "have"
    text = f"Of {total} problem{'s' if total != 1 else ''}, {counts['winner']} {has} a winner"
    if counts["same"]:
        text += f", on {counts['same']} the fastest are the same within 5%"
    if counts["alone"]:
        text += f", on {counts['alone']} only one algorithm competes"
    if not counts["undecided"]:
        return text + (", and none is undecided." if total > 1 else ".")
    open_ = best[best["verdict"] == "undecided"]
    widest = max(tuples(open_), key=lambda row: row.high / row.low)
    text += (
        f", and {counts['undecided']} {'is' if counts['undecided'] == 1 else 'are'} undecided, because the "
        f"noise there is larger than the lead (at worst {ratio_text(widest.low)} to "
        f"{ratio_text(widest.high)} on {widest.spec})"
    )
    needed = open_["needed"].max()
    if needed <= SENSIBLE:
        return f"{text}: about {needed:.0f} launches would decide (--launches {needed:.0f})."
    return (
        f"{text}: that would take over {SENSIBLE} launches here, so measure again when the machine is calm."
    )


def _times(ratio: float) -> str:
    """2.1, 510: two digits are what plain words need."""
    return f"{float(f'{ratio:.2g}'):,g}"


def _listed(texts: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(texts[:-1]) + f" and {texts[-1]}" if len(texts) > 1 else "".join(texts)


# ---- what a picture shows ----------------------------------------------------------------------------------


def who_wins(
    best: pd.DataFrame, name: Callable[[Any], str] = lambda row: f"{row.size}, kernel {row.kernel}"
) -> str:
    """What a reader sees of the winners: who is fastest where, and where nobody surely is."""
    if best.empty:
        return "Nobody has a time."
    parts, rows = [], tuples(best)
    for winner, count in Counter(best["winner"]).most_common(MOST_NAMED):
        where = [name(row) for row in rows if row.winner == winner]
        told = f" ({'; '.join(where)})" if count <= 3 else ""
        parts.append(f"{winner} is fastest on {count} of {len(best)}{told}")
    others = best["winner"].nunique() - MOST_NAMED
    if others > 0:
        parts.append(f"{others} other{'s' if others > 1 else ''} on the rest")
    counts = Counter(best["verdict"])
    if counts["same"]:
        parts.append(f"the same within 5% as another on {counts['same']}")
    if counts["undecided"]:
        parts.append(f"undecided on {counts['undecided']}")
    return ", ".join(parts) + "."


def spans(rows: pd.DataFrame, best: pd.DataFrame) -> str:
    """How far the slowest is behind, for pictures of times."""
    ratio = (rows.groupby("spec")["median_s"].max() / rows.groupby("spec")["median_s"].min()).max()
    return f"{who_wins(best)} The slowest takes up to {_times(ratio)} times as long as the fastest."


def crossovers(best: pd.DataFrame) -> str:
    """From which kernel on somebody else is fastest, for every size of the image."""
    parts = []
    for size, group in best.groupby("size", sort=False):
        changes, last = [], ""
        for row in tuples(group.sort_values("kernel_side")):
            if row.winner != last:
                changes.append(f"{row.winner} {'from' if last else 'at'} {row.kernel}{' on' if last else ''}")
            last = row.winner
        parts.append(f"at {size}: {', '.join(changes)}")
    return "Fastest " + "; ".join(parts) + "." if parts else ""


def stretches_text(stretches: list[Stretch]) -> str:
    """``im2col_gemm; from 3 calls on fft``."""
    first, *others = stretches
    return "; ".join([first.algorithm, *(f"from {s.calls:,} calls on {s.algorithm}" for s in others)])
