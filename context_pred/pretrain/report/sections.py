"""The sections of a run's report, each from what the run's files say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from context_pred.markup import SPACE, Child, Markup, count, duration, element, facts, joined, percent, picture, table
from context_pred.patches.layout import OFFSETS, POSITIONS
from context_pred.pretext import CHANCE
from context_pred.training.progress import CHANCE_LOSS, LOG

from .charts import Series, line_chart, position_grid
from .files import DAMAGED, Row, RunFiles, number

SHOWN_FILES, SHOWN_SAMPLES, SHOWN_ROWS = 100, 16, 12
"""How many are listed at most: bad files, sampled pairs of a kind (right, wrong), lines of the log."""

ARROWS = ("↖", "↑", "↗", "←", "→", "↙", "↓", "↘")
"""Of the eight positions in raster order."""

PATCH = 52
"""Side of a sampled patch on the page, in px."""

WAITS = 0.1
"""From which share of the time on the report says that a run waited for its data."""


CHANCE_PERCENT = percent(CHANCE)


def interval(result: Row) -> str:
    """Write a result's 95 % interval."""
    return f"{100 * result['low']:.1f} … {percent(result['high'])}"


def rate_text(rate: float) -> str:
    """Write a learning rate, small ones as 1.25e-4."""
    if rate == 0 or rate >= 1e-3:
        return f"{rate:.3g}"
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# Curves ---------------------------------------------------------------------------------------------------------------


def curves(files: RunFiles) -> Child:
    """Show loss, accuracy, learning rate and speed over the steps, and the log in short."""
    if not files.log:
        return element("p", "No step was recorded.")
    epoch, step = number(files.last, "epoch"), files.last["step"]
    x_label = f"step ({step / epoch:,.0f} an epoch)" if epoch and step else "step"
    loss = line_chart(
        "Loss (nats a pair)",
        [
            Series("training", _points(files.means, "loss")),
            _evaluated(files, "held out", "loss"),
        ],
        show=lambda y: f"{y:.4g}",
        x_label=x_label,
        mark=(CHANCE_LOSS, "chance, ln 8"),
    )
    accuracy = line_chart(
        "Pretext accuracy (%)",
        [
            Series("training", _points(files.means, "accuracy")),
            _evaluated(files, "held out, 95 % interval", "accuracy"),
        ],
        show=lambda y: f"{100 * y:.3g}",
        x_label=x_label,
        mark=(CHANCE, f"chance, {CHANCE_PERCENT}"),
        from_zero=True,
    )
    rates = line_chart(
        "Learning rate",
        [Series("schedule", _points(files.log, "lr"))],
        show=rate_text,
        x_label=x_label,
        from_zero=True,
    )
    speed = line_chart(
        "Speed (images/s)",
        [Series("training", _points(files.means, "images_per_second"))],
        show=lambda y: f"{y:,.4g}",
        x_label=x_label,
        from_zero=True,
    )
    return [
        element(
            "div",
            _captioned(
                loss,
                "Cross entropy of the eight positions; training: while learning, the mean from point to point.",
            ),
            _captioned(
                accuracy,
                "How often the right one of eight positions has the highest score; held out: on images never trained "
                "on, dropout off.",
            ),
            _captioned(rates, "The learning rate at each step."),
            _captioned(speed, "Images trained on in a second, evaluations left out."),
            class_="pair",
        ),
        element("h3", "The log in short"),
        element("p", f"At most {SHOWN_ROWS} of the {count(len(files.log), 'line')} of {LOG}.", class_="soft"),
        _log_table(files),
    ]


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    values = ((row["step"], number(row, key)) for row in rows)
    return [(float(step), value) for step, value in values if value is not None]


def _evaluated(files: RunFiles, label: str, key: str) -> Series:
    results = files.evaluations
    accuracy = key == "accuracy"
    return Series(
        label,
        [(float(step), result[key]) for step, result in results.items()],
        color="b",
        dots=True,
        intervals=[(result["low"], result["high"]) for result in results.values()] if accuracy else (),
        labels=[
            f"step {step:,}: " + (f"{percent(r[key])} ({interval(r)})" if accuracy else f"{r[key]:.3f}")
            for step, r in results.items()
        ],
    )


def _captioned(content: Markup | None, caption: str, style: str | None = None) -> Markup | None:
    return None if content is None else element("figure", content, element("figcaption", caption), style=style)


def _log_table(files: RunFiles) -> Markup:
    """List the evaluations, or lines of the log where there were none; a line that has no means takes the last ones."""
    means: Row = {}
    complete: dict[int, Row] = {}
    for row in files.log:
        if number(row, "loss") is not None:
            means = row
        complete[row["step"]] = {**complete.get(row["step"], {}), **means, **row}
    chosen = _spread(list(files.evaluations or complete))
    if files.last["step"] not in chosen:
        chosen.append(files.last["step"])
    head = ("Step", "Epoch", "Images", "Time", "Learning rate", "Loss", "Accuracy", "Held out", "95 % interval")
    rows = [_log_line(complete[step], files.evaluations.get(step)) for step in chosen]
    return table(head, rows, class_="numbers")


def _log_line(row: Row, held_out: Row | None) -> list[Child]:
    loss, lr = number(row, "loss"), number(row, "lr")
    return [
        f"{row['step']:,}",
        f"{row.get('epoch', 0):.2f}",
        f"{row.get('images', 0):,}",
        duration(row.get("seconds", 0)),
        "–" if lr is None else rate_text(lr),
        "–" if loss is None else f"{loss:.3f}",
        percent(number(row, "accuracy")),
        percent(held_out["accuracy"]) if held_out else "–",
        interval(held_out) if held_out else "–",
    ]


def _spread(steps: list[int]) -> list[int]:
    """Choose at most SHOWN_ROWS, evenly, the first and last among them."""
    if len(steps) <= SHOWN_ROWS:
        return steps
    return [steps[k * (len(steps) - 1) // (SHOWN_ROWS - 1)] for k in range(SHOWN_ROWS)]


# Positions and pairs --------------------------------------------------------------------------------------------------


def positions(files: RunFiles) -> Child:
    """Show the accuracy by position, and which position is taken for which."""
    result = files.held_out or files.training
    if result is None:
        return element("p", "No accuracy was measured.")
    where = "held-out images" if files.held_out else "training images, dropout off"
    confusion = result["confusion"]
    top = max([share for share in result["by_position"] if share is not None], default=1.0)
    cells = [
        (
            percent(share),
            None if share is None else (share - CHANCE) / max(top - CHANCE, 0.01),
            f"{POSITIONS[k]} ({sum(confusion[k]):,})",
        )
        for k, share in enumerate(result["by_position"])
    ]
    return element(
        "div",
        _captioned(
            position_grid(cells, title="Accuracy by position", side=330),
            f"Accuracy by position on {where}: how often a neighbour that lies there is placed right (in brackets, of "
            f"how many pairs); the stronger the blue, the more often, and none is chance, {CHANCE_PERCENT}, or worse.",
            style="flex:1 1 300px;max-width:360px",
        ),
        _captioned(
            _confusion(confusion),
            f"Confusion on {where}, in percent: of the neighbours that lie where the row says, how many the network "
            f"places where the column says; right answers on the diagonal, chance is {CHANCE_PERCENT} everywhere.",
            style="flex:2 1 520px",
        ),
        class_="pair",
    )


def _confusion(confusion: Sequence[Sequence[int]]) -> Markup:
    columns = [element("th", arrow, scope="col", title=name) for arrow, name in zip(ARROWS, POSITIONS, strict=True)]
    head = element("tr", element("th", "lies ↓  placed →", scope="col"), columns, element("th", "pairs", scope="col"))
    rows = [_confusion_row(position, counts) for position, counts in enumerate(confusion)]
    whole = element("table", element("thead", head), element("tbody", rows), class_="confusion")
    return element("div", whole, class_="scroll")


def _confusion_row(position: int, counts: Sequence[int]) -> Markup:
    total = sum(counts)
    cells = [
        element(
            "td",
            f"{100 * number / total:.1f}" if total else "–",
            class_="right" if k == position else None,
            style=f"background:rgba(var(--heat),{number / total if total else 0:.3f})",
            title=f"{number:,} of {total:,}: lies {POSITIONS[position]}, placed {POSITIONS[k]}",
        )
        for k, number in enumerate(counts)
    ]
    name = element("th", f"{ARROWS[position]} {POSITIONS[position]}", class_="row", scope="row")
    return element("tr", name, cells, element("td", f"{total:,}"))


def pairs(files: RunFiles) -> Child:
    """Show sampled pairs with what the network says of them."""
    samples = files.samples
    if any(name not in samples for name in ("neighbors", "centers", "position", "probabilities")):
        return element("p", "No pairs were sampled; that is done when a run ends.")
    right = samples["probabilities"].argmax(1) == samples["position"]
    groups = [("Placed right", right.nonzero()[0].tolist()), ("Placed wrong", (~right).nonzero()[0].tolist())]
    return [
        element(
            "p",
            "Each pair as the network sees it: the centre patch (framed) with its neighbour at its true place, and "
            "beside it the network's probabilities of the eight positions in percent, the true one framed. The pairs "
            "were drawn at random, not chosen.",
        ),
        [
            joined(
                element("h3", f"{title}: {len(chosen)} of {len(right)}"),
                element("div", [_sample(samples, k) for k in chosen[:SHOWN_SAMPLES]], class_="samples"),
            )
            for title, chosen in groups
            if chosen
        ],
    ]


def _sample(samples: Mapping[str, Any], k: int) -> Markup:
    position, chances = int(samples["position"][k]), [float(p) for p in samples["probabilities"][k]]
    said = max(range(8), key=chances.__getitem__)
    down, right = OFFSETS[position]
    step = PATCH / 2 + 1
    patches = [
        picture(
            samples[name][k],
            label,
            PATCH,
            class_=name,
            style=f"left:{PATCH / 2 + 2 + sign * right * step:.0f}px;top:{PATCH / 2 + 2 + sign * down * step:.0f}px",
        )
        for name, label, sign in (("centers", "centre", -1), ("neighbors", f"neighbour, {POSITIONS[position]}", 1))
    ]
    cells = [(f"{100 * p:.0f}", p, "") for p in chances]
    heat = position_grid(cells, title="Probabilities in percent; the true position is framed", frames=(position,))
    if said == position:
        text = [element("span", "✓ right", class_="good"), element("br"), POSITIONS[position]]
    else:
        answer = element("span", "✗ wrong", class_="bad")
        text = [answer, element("br"), f"lies {POSITIONS[position]},", element("br"), f"placed {POSITIONS[said]}"]
    return element("div", element("div", patches), heat, element("p", text), class_="sample")


# Data and speed -------------------------------------------------------------------------------------------------------


def data(files: RunFiles) -> Child:
    """Show what the run was trained on, what the corpus check found, and which images were damaged."""
    run, check = files.run, files.run.get("check")
    trained, held = run.get("count"), run.get("held_out_count")
    return [
        facts(
            [
                ("Images", run.get("images")),
                ("Trained on", count(trained, "image") if isinstance(trained, int) else None),
                ("Held out", count(held, "image") if isinstance(held, int) else None),
            ]
        ),
        element("h3", "The corpus check before the first step"),
        _checked(check) if isinstance(check, dict) else element("p", "It was not recorded."),
        element("h3", "Damaged images met while training"),
        _damaged(files.damaged),
    ]


def _checked(check: Row) -> Child:
    """Show what ``CorpusCheck.to_dict`` says."""
    looked_at, too_small = check.get("looked_at", 0), check.get("too_small", 0)
    unreadable = [(str(name), str(reason)) for name, reason in check.get("unreadable", ())]
    formats = ", ".join(f"{number:,} {kind}" for kind, number in check.get("formats", {}).items())
    sides = [
        (name, *(f"{value:,}" for value in check[key]))
        for name, key in (("Shorter side (px)", "short_side"), ("Longer side (px)", "long_side"))
        if check.get(key)
    ]
    small = f"{too_small:,}"
    if too_small and "enlarged" in check:
        middle, most = check["enlarged"]
        small += f", enlarged {middle:.1f}-fold in the median, {most:.1f}-fold at most"
    rows: list[tuple[str, Child]] = [
        ("Images", f"{check.get('images', 0):,}, of which the headers of {looked_at:,} were read"),
        ("Formats", formats or None),
        ("Grey", f"{check['grey']:,}" if "grey" in check else None),
        ("Smaller than needed", small),
        ("Not readable", f"{len(unreadable):,}"),
    ]
    head = ("", "least", "5 % below", "median", "95 % below", "most")
    return [facts(rows), table(head, sides, class_="numbers") if sides else None, _listed("Unreadable", unreadable)]


def _listed(what: str, files: Sequence[tuple[str, str]]) -> Markup | None:
    """List files with what is wrong with them; a long list is folded."""
    if not files:
        return None
    shown = files[:SHOWN_FILES]
    title = f"{what}: {len(files):,}" if len(shown) == len(files) else f"{what}: the first {len(shown)}"
    unfolded = "" if len(shown) <= SHOWN_ROWS else None
    return element("details", element("summary", title), table(("Image", "Why"), shown), open=unfolded)


def _damaged(damaged: Sequence[Row]) -> Child:
    if not damaged:
        return element("p", "None.")
    text = f"{count(len(damaged), 'image')} could not be used; others took their places. All are in {DAMAGED}."
    files = [(str(row.get("image", "–")), str(row.get("reason", "–"))) for row in damaged]
    return [element("p", text), _listed("Damaged", files)]


def speed(files: RunFiles) -> Child:
    """Show how fast it went, and whether the network waited for data."""
    speeds = [value for row in files.means if (value := number(row, "images_per_second"))]
    if not speeds:
        return element("p", "No speed was recorded.")
    waiting = [value for row in files.means if (value := number(row, "waiting")) is not None]
    share = statistics.fmean(waiting) if waiting else None
    middle = f"{statistics.median(speeds):,.1f}{SPACE}images/s in the median ({min(speeds):,.1f} … {max(speeds):,.1f})"
    whole = f"{files.images / files.seconds:,.1f}{SPACE}images/s" if files.images and files.seconds else None
    chart = line_chart(
        "Waiting for data (% of the time)",
        [Series("training", _points(files.means, "waiting"))],
        show=lambda y: f"{100 * y:.3g}",
        from_zero=True,
    )
    return [
        facts(
            [
                ("Training", middle),
                ("With all else", f"{whole}, with evaluations, checkpoints and starting" if whole else None),
                ("Whole time", duration(files.seconds) if files.seconds else None),
                ("Waiting for data", None if share is None else f"{percent(share)} of the training time"),
            ]
        ),
        None if share is None else element("p", _advice(share)),
        _captioned(chart, "How much of the time the loop had no images to work on.", style="max-width:560px"),
    ]


def _advice(waiting: float) -> str:
    if waiting > WAITS:
        return "The network waited for images: more workers, smaller files or a faster disk would make this run faster."
    return "Images came as fast as they were needed: more workers would not make this run faster."


# The run --------------------------------------------------------------------------------------------------------------


def run(files: RunFiles) -> Child:
    """Show the command, versions and hardware, the notes, and the whole recipe."""
    values = files.run
    versions, notes = values.get("versions"), values.get("notes") or []
    rows: list[tuple[str, Child]] = [
        ("Command", element("code", values["command"]) if values.get("command") else None),
        ("Started from", _started_from(values["init"]) if values.get("init") else None),
        ("Resumed", _resumed(values["resumed"]) if values.get("resumed") else None),
        ("Device", values.get("device")),
        ("Processor", values.get("cpu")),
        ("Processes", values.get("world_size")),
        ("Threads", values.get("threads")),
        ("Decoding workers", values.get("workers")),
        ("Versions", ", ".join(f"{name} {v}" for name, v in versions.items()) if isinstance(versions, dict) else None),
    ]
    return [
        facts(rows) if values else element("p", "Nothing says on what it ran."),
        [element("h3", "Notes"), element("ul", [element("li", str(note)) for note in notes])] if notes else None,
        element("h3", "The whole recipe"),
        element("pre", files.recipe) if files.recipe else element("p", "It is missing."),
    ]


def _started_from(init: Any) -> Child:
    """Show what ``StartedFrom.to_dict`` says."""
    if not isinstance(init, dict):
        return str(init)
    digest = f" (SHA-256 {init['sha256']})" if init.get("sha256") else ""
    lines = [f"{init.get('source')}{digest}: {', '.join(init.get('taken', ())) or 'nothing'}"]
    lines += [f"not taken: {part}, since {why}" for part, why in init.get("left_out", ())]
    return [joined(element("br") if k else None, line) for k, line in enumerate([*lines, *init.get("notes", ())])]


def _resumed(times: Sequence[Row]) -> str:
    shown = [f"from step {row.get('step', 0):,} ({row.get('at', '–')})" for row in times[-SHOWN_ROWS:]]
    more = f"{count(len(times), 'time')}, the last: " if len(shown) < len(times) else ""
    return more + "; ".join(shown)
