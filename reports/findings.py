"""What the measurements say, in plain words: the paragraph that opens a report, what a picture shows, who stands out in one.

Everything rests on ``ranking``: no sentence claims more than its verdicts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench import mood
from bench.twins import NOT_MEASURED, rates
from reports.frame import GROUP, tuples
from reports.ranking import auto_results, ranked, winners
from reports.style import ratio_text

MOST_LINES = 8  # that stand out in a picture
MOST_NAMED = 4  # algorithms or kernels in a sentence
SENSIBLE = 20  # launches
Networks = Sequence[tuple[str, Sequence[tuple[str, str, int]]]]  # name, (layer, spec at any batch, how often it occurs)


# ---- the machine -------------------------------------------------------------------------------------------------


def calm(frame: pd.DataFrame) -> str:
    """One line on how calm the machine was while these records were taken."""
    known = frame[["left_out", "steal", "load", "loop"]].dropna()
    return mood.calm_text([tuple(row) for row in known.itertuples(index=False, name=None)])


def false_alarms(machines: Iterable[str]) -> str:
    """One line on the rate at which this machine calls identical code different, where that was measured."""
    found = [known.text() for machine in machines if (known := rates(machine))] or [NOT_MEASURED]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in found)


# ---- layers ------------------------------------------------------------------------------------------------------


def layer_names(networks: Networks) -> dict[str, str]:
    """Spec without its batch -> the layer's name, with its network's before it where there are several networks."""
    several = len(networks) > 1
    names: dict[str, str] = {}
    for network, layers in networks:
        for layer, spec, count in layers:
            named = f"{network} {layer}" if several else layer
            names.setdefault(without_batch(spec), named + (f" x{count}" if count > 1 else ""))
    return names


def without_batch(spec: str) -> str:
    return spec.partition("x")[2]


def in_network_order(frame: pd.DataFrame, networks: Networks) -> pd.DataFrame:
    """The records with the layers of networks in their order, the others before them as they were."""
    places = {spec: at for at, spec in enumerate(layer_names(networks))}
    if not places or frame.empty:
        return frame
    order = [places.get(without_batch(spec), -1) for spec in frame["spec"]]
    if order == sorted(order):
        return frame
    return frame.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


# ---- in plain words ----------------------------------------------------------------------------------------------


def in_short(frame: pd.DataFrame) -> list[str]:
    """A paragraph for each (machine, threads, cold): what to use, how far behind the others are, and what is not decided."""
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
    kinds = rows.drop_duplicates("spec").set_index("spec").apply(_kind, axis=1)
    tied = {row.spec: row.tied for row in tuples(best)}
    chosen: dict[tuple[str, float, str], tuple[str, float]] = {}
    for kind in dict.fromkeys(kinds):
        specs = list(kinds.index[kinds == kind])
        chosen[kind] = _favourite(rows[rows["spec"].isin(specs)], [tied[spec] for spec in specs if spec in tied])
    uses: dict[str, list[str]] = {}
    behind: dict[str, float] = {}
    for words, run in _runs(chosen):
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


def _kind(row: Any) -> tuple[str, float, str]:
    """What advice is given for: words for the sort of problem, the kernel's side, the kernel."""
    depthwise = row["groups"] == row["channels"] > 1
    strided = set(str(row["stride"]).split("x")) - {"1"}
    words = " depthwise" if depthwise else " grouped" if row["groups"] > 1 else ""
    words += f" with stride {row['stride']}" if strided else ""
    words += f" in {row['dtype']}" if row["dtype"] not in ("float32", math.nan) else ""
    words += f" of rank {row['rank']:g}" if row["rank"] == row["rank"] else ""
    return words, float(row["kernel_side"]), str(row["kernel"])


def _favourite(rows: pd.DataFrame, tied: Sequence[tuple[str, ...]]) -> tuple[str, float]:
    """Whoever is nowhere surely slower, else whoever loses least; and the most that it may lose, 1 for the former."""
    table = rows.pivot_table(index="spec", columns="algorithm", values="median_s", aggfunc="min")
    losses = table.div(table.min(axis=1), axis=0).dropna(axis=1)
    if losses.empty:
        losses = table.div(table.min(axis=1), axis=0).fillna(np.inf)
    means = np.log(losses).mean().sort_values(kind="stable")
    safe = [name for name in means.index if all(name in names for names in tied)]
    name = str((safe or list(means.index))[0])
    return name, 1.0 if safe else float(losses[name].max())


def _runs(chosen: Mapping[tuple[str, float, str], tuple[str, float]]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """Neighbouring kernels of one sort of problem with the same favourite, smallest first."""
    runs: list[tuple[str, list[tuple[str, float, str]]]] = []
    for kind in sorted(chosen):
        if runs and runs[-1][0] == kind[0] and chosen[runs[-1][1][-1]][0] == chosen[kind][0]:
            runs[-1][1].append(kind)
        else:
            runs.append((kind[0], [kind]))
    return runs


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
    return (f"auto, the automatic choice, is surely slower than the best of ours on {len(behind)} of {len(autos)}, at worst "
            f"{_times(worst['ratio'])} times as slow ({worst['spec']}).")  # fmt: skip


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
    text += (f", and {counts['undecided']} {'is' if counts['undecided'] == 1 else 'are'} undecided, because the noise there is "
             f"larger than the lead (at worst {ratio_text(widest.low)} to {ratio_text(widest.high)} on {widest.spec})")
    needed = open_["needed"].max()
    if needed <= SENSIBLE:
        return f"{text}: about {needed:.0f} launches would decide (--launches {needed:.0f})."
    return f"{text}: that would take over {SENSIBLE} launches here, so measure again when the machine is calm."


def _times(ratio: float) -> str:
    """2.1, 510: two digits are what plain words need."""
    return f"{float(f'{ratio:.2g}'):,g}"


def _listed(texts: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(texts[:-1]) + f" and {texts[-1]}" if len(texts) > 1 else "".join(texts)


# ---- what a picture shows ----------------------------------------------------------------------------------------


def standouts(rows: pd.DataFrame, best: pd.DataFrame, most: int = MOST_LINES) -> list[str]:
    """Whom a picture of ``rows`` is about, the most important first: auto, winners, who may be as fast, the best peers, the
    nearest.
    """
    specs = set(rows["spec"])
    best = best[best["spec"].isin(specs)]
    present = dict.fromkeys(rows["algorithm"])
    won = [name for name, _ in Counter(best["winner"]).most_common()]
    tied = [name for name, _ in Counter(name for names in best["tied"] for name in names).most_common()]
    fastest = rows.groupby("spec")["median_s"].min()
    losses = rows[["algorithm"]].assign(loss=np.log(rows["median_s"] / rows["spec"].map(fastest)))
    loss = losses.groupby("algorithm")["loss"].agg(["mean", "size"])
    near = list(loss[loss["size"] >= loss["size"].max() / 2].sort_values("mean", kind="stable").index)
    peers = set(rows.loc[rows["family"] == "peer", "algorithm"])
    some = [name for name in ("auto",) if name in present]
    order = [*some, *won[: most - 3], *[name for name in near if name in peers][:1], *won, *tied, *near]
    return [name for name in dict.fromkeys(order) if name in present][:most]


def who_wins(best: pd.DataFrame, name: Callable[[Any], str] = lambda row: f"{row.size}, kernel {row.kernel}") -> str:
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

