"""The page's pieces: nothing tells the truth too early, and names stay text."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from context_pred.app import pieces
from context_pred.app.guess import Question, Score
from context_pred.app.uploads import Photo
from context_pred.patches import POSITIONS

CENTER, NEIGHBOR = (40, 40, 60, 60), (70, 10, 90, 30)


def question(position: int = 2, predicted: int = 7, name: str = "a.jpg") -> Question:
    photograph = Image.new("RGB", (100, 80), (10, 20, 30))
    photograph.paste((200, 30, 30), NEIGHBOR)
    probabilities = tuple(0.65 if k == predicted else 0.05 for k in range(8))
    return Question(photograph, CENTER, NEIGHBOR, position, probabilities, name)


def test_before_the_guess_nothing_tells_the_truth() -> None:
    """The HTML is the same wherever the patch lies, whatever the model thinks, and whichever photograph it is."""
    drawn = {
        pieces.board(question(position, predicted, name), Score(3, 1, 2))
        for position, predicted, name in ((0, 0, "a.jpg"), (5, 1, "b.jpg"), (2, 7, "c.jpg"))
    }
    assert len(drawn) == 1
    (html,) = drawn
    assert re.findall(r'data-cell="(\d)" aria-label="([^"]+)"', html) == [(str(k), p) for k, p in enumerate(POSITIONS)]
    assert "data-next" not in html


def test_the_guess_reveals_the_patch_in_its_place() -> None:
    html = pieces.board(question(position=2, predicted=7), Score(1, 0, 0), guess=1)
    cells = re.findall(r'<span class="cp-cell ([^"]*)" role="img" aria-label="([^":]+): the model says (\d+)\s%"', html)
    assert [(name, int(share)) for _, name, share in cells] == [
        (name, 65 if k == 7 else 5) for k, name in enumerate(POSITIONS)
    ]
    assert [kind for kind, *_ in cells] == [
        "cp-said" + {1: " cp-false", 2: " cp-true"}.get(k, "") for k in range(8)
    ]  # fmt: skip
    assert "It lies up-right." in html
    assert "You said “up”, wrong" in html
    assert "“down-right” (65\N{NO-BREAK SPACE}% sure), wrong" in html
    assert "data-cell" not in html
    assert html.count("data-next") == 1
    frames = re.findall(r'cp-frame ?([^"]*)" style="left:([\d.]+)%;top:([\d.]+)%', html)
    assert frames == [("", "40.00", "50.00"), ("cp-found", "70.00", "12.50")]


def test_names_stay_text() -> None:
    nasty = '"><script>alert(1)</script>\udcff.jpg'  # and a byte that is no UTF-8, as Python reads it
    image = Image.new("RGB", (20, 10))
    drawn = [
        pieces.picture(Photo(nasty, image, image.size), hint=nasty),
        pieces.still(Photo(nasty, image, image.size), hint=nasty),
        pieces.sheet([pieces.tile(image, nasty, note=nasty)], choose="Take"),
        pieces.sentence(nasty, wrong=True),
        pieces.board(question(name=nasty), Score(1, 1, 1), guess=0),
        pieces.empty(nasty),
    ]
    for html in drawn:
        assert "<script" not in html
        assert "&lt;script" in html
        html.encode("utf-8")


def test_a_tile_frames_its_patch_and_a_photograph_that_has_gone_is_grey(collection: Path) -> None:
    with Image.open(collection / "koala.png") as image:
        width, height = image.size
    box = (0, height / 4, width / 2, height / 2)
    tile = pieces.tile_of(str(collection / "koala.png"), "0.900", box)
    assert tile.box == (0, 0.25, 0.5, 0.5)
    assert tile.ratio == width / height
    assert "left:0.00%;top:25.00%;width:50.00%;height:25.00%" in pieces.sheet([tile])
    gone = pieces.tile_of(str(collection / "gone.png"))
    assert (gone.label, gone.note) == ("gone.png", "cannot be opened")


def test_what_went_wrong_is_announced() -> None:
    assert 'role="alert"' in pieces.sentence("No.", wrong=True)
    assert 'role="status"' in pieces.sentence("Yes.")
    assert pieces.sentence("") == ""
