"""What the audit's figures say, in plain words, with the thresholds they are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from context_pred.pretext import CHANCE

from .pairs import Treatment
from .places import Distance, Places

COLOR_LOST = 1 / 3
"""Colour: losing more than this share of the accuracy above chance in grey is a sign."""

BORDERS_LOST = 1 / 2
"""Borders: losing more than this share both with the borders blanked and with the borders cut off.

A blank frame is itself strange to a network; without a frame, enlarged patches are. Who needs the borders loses both.
"""

GAP_LOST = 1 / 2
"""Gaps: losing more than this share with half a patch more between the cells."""

SINGLE_SHARE = 1 / 4
"""Single patches: keeping more than this share with the centre from another image."""

GRAY_SHARE = 9 / 10
"""Colour: where more than this share of the photographs is grey to begin with, it cannot be told."""

X_BELOW, BOTH_BELOW = 0.05, 0.15
"""Places: an RMSE this far below chance, left to right or over both axes."""


@dataclass(frozen=True)
class Finding:
    """One question, answered.

    Attributes:
        question: "task", "color", "borders", "gap", "two_images" or "places".
        sign: Whether the figures are a sign of cheating; None where they cannot tell.
        text: The figures, what they mean and the threshold, in one or two sentences.
    """

    question: str
    sign: bool | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


def findings(treatments: Sequence[Treatment], places: Sequence[Places], gray: float = 0.0) -> tuple[Finding, ...]:
    """Hold every figure against its threshold; a sign must also stand clear of its own interval.

    ``gray`` is the share of the photographs that have no colour.
    """
    by_name = {treatment.name: treatment for treatment in treatments}
    found = [_task(by_name["as_trained"], by_name.get("paper"))]
    if "gray" in by_name:
        found.append(_color(by_name, gray))
    found.append(_borders(by_name))
    found.append(_gap(by_name))
    if "two_images" in by_name:
        found.append(_single(by_name))
    found.append(_places({each.name: each for each in places}))
    return tuple(found)


def _task(trained: Treatment, paper: Treatment | None) -> Finding:
    result = trained.result
    solved = result.low > CHANCE
    verdict = "better than chance" if solved else "not better than chance, so nothing can be said of how it is solved"
    text = f"As trained {result}: {verdict} (12.5%)."
    if paper is not None:
        spread = paper.result
        text += f" In the paper's geometry {spread.accuracy:.1%} ({spread.low:.1%} … {spread.high:.1%})."
    return Finding("task", None if not solved else False, text)


def _judged(treatment: Treatment, threshold: float) -> bool | None:
    """Whether more than the threshold's share is lost, for certain; None where there was nothing to lose."""
    if treatment.lost is None or treatment.change_high is None:
        return None
    return treatment.lost > threshold and treatment.change_high < 0


def _said(treatment: Treatment) -> str:
    """Say the accuracy and how much of what was above chance is lost."""
    text = f"{treatment.result.accuracy:.1%}"
    if treatment.lost is None or treatment.change is None:
        return text
    low, high = (f"{100 * (bound or 0):+.1f}" for bound in (treatment.change_low, treatment.change_high))
    share = f"{treatment.lost:.0%} of the accuracy above chance lost" if treatment.lost > 0 else "nothing lost"
    return f"{text}, {100 * treatment.change:+.1f} points ({low} … {high}), {share}"


def colorless(gray: float) -> bool:
    """Whether so many of the photographs are grey that nothing about colour can be told."""
    return gray > GRAY_SHARE


def _color(by_name: dict[str, Treatment], share: float) -> Finding:
    gray = by_name["gray"]
    if colorless(share):
        whose = "these photographs are" if share == 1 else f"{share:.0%} of these photographs are"
        return Finding("color", None, f"Colour removed: {whose} grey: cannot tell. Give photographs in colour.")
    sign = _judged(gray, COLOR_LOST)
    verdict = {True: "it leans on colour", False: "it does not need colour", None: "nothing to lose"}[sign]
    some = f"; {share:.0%} of the photographs are grey to begin with, and weaken this" if share >= 0.1 else ""
    return Finding("color", sign, f"Colour removed {_said(gray)}: {verdict} (a sign from {COLOR_LOST:.0%}{some}).")


def _borders(by_name: dict[str, Treatment]) -> Finding:
    borders, middle, inner = by_name["borders"], by_name["middle"], by_name["inner"]
    both = [_judged(borders, BORDERS_LOST), _judged(inner, BORDERS_LOST)]
    sign = None if None in both else all(both)
    verdict = {
        True: "it follows what runs on from border to border",
        False: "it does not live on the borders",
        None: "nothing to lose",
    }[sign]
    return Finding(
        "borders",
        sign,
        f"Borders blanked {_said(borders)}; as many pixels of the middle blanked {middle.result.accuracy:.1%}; borders "
        f"cut off and the inner 3/4 enlarged {_said(inner)}: {verdict} (a sign from {BORDERS_LOST:.0%} either way; a "
        "frame alone is strange to a network).",
    )


def _gap(by_name: dict[str, Treatment]) -> Finding:
    none, half, whole = (by_name[name] for name in ("gap_none", "gap_half", "gap_whole"))
    sign = _judged(half, GAP_LOST)
    verdict = {
        True: "it matches what lies next to each other",
        False: "it sees further than the seam",
        None: "nothing to lose",
    }[sign]
    return Finding(
        "gap",
        sign,
        f"On larger photographs {none.result.accuracy:.1%}, with half a patch more between the cells {_said(half)}; a "
        f"whole patch more {whole.result.accuracy:.1%}: {verdict} (a sign from {GAP_LOST:.0%}).",
    )


def _single(by_name: dict[str, Treatment]) -> Finding:
    single, trained = by_name["two_images"].result, by_name["as_trained"].result
    above = trained.accuracy - CHANCE
    sign = None if trained.low <= CHANCE else single.low > CHANCE and single.accuracy - CHANCE > SINGLE_SHARE * above
    if single.low <= CHANCE <= single.high:
        verdict = "chance, as it should be: the pair is what it looks at"
    elif single.low > CHANCE:
        verdict = "above chance: single patches tell where in a photograph they lie, by its content or by the lens"
    else:
        verdict = "below chance: what it looks at is the pair, and a strange one misleads it"
    return Finding(
        "two_images",
        sign,
        f"Centre and neighbour from two images {single.accuracy:.1%} ({single.low:.1%} … {single.high:.1%}): {verdict} "
        f"(a sign from {SINGLE_SHARE:.0%} of the accuracy above chance on).",
    )


def below_chance(distance: Distance) -> str:
    """Say how far an RMSE lies below chance."""
    return f"{distance.below:.1%} below chance" if distance.below >= 0.0005 else "no better than chance"


def _places(by_name: dict[str, Places]) -> Finding:
    color = by_name["color"]
    sign = (color.x.below > X_BELOW and color.x.low > 0) or (color.both.below > BOTH_BELOW and color.both.low > 0)
    parts = []
    as_they_are = "in colour" if len(by_name) > 1 else "as they are"
    for name, words in (("color", as_they_are), ("projected", "projected"), ("gray", "in grey")):
        if name in by_name:
            both, x = by_name[name].both, by_name[name].x
            parts.append(f"{words} {both.rmse:.3f} ({below_chance(both)}; left to right {below_chance(x)})")
    verdict = "the features know where in the photograph a patch lies" if sign else "the features hardly know"
    return Finding(
        "places",
        sign,
        f"Place of a patch from its features, RMSE with chance at {color.both.chance:.3f}: {', '.join(parts)}: "
        f"{verdict} (a sign from {X_BELOW:.0%} left to right, or {BOTH_BELOW:.0%} in all, where skies count too).",
    )
