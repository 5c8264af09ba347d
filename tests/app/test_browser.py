"""The page in a real browser, with the shipped model: load, upload, click, see; by mouse, finger's width and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, Opened, chromium, open_page
from served import serving

from context_pred.app import Limits
from context_pred.patches import POSITIONS
from context_pred.zoo import load_pretrained

pytestmark = pytest.mark.browser

GRADIOS_OWN = ("Method not implemented.", "net::ERR_ABORTED")
"""What Gradio's own script says on any page: a stub it calls, and streams of events it closes when they are over."""


@pytest.fixture(scope="module")
def url(collection: Path) -> Iterator[str]:
    chromium()
    with serving(
        load_pretrained("resnet18_1xb64-coslr-300k"),
        Limits(megabytes=0.5, megapixels=10),
        images=collection,
        patches=True,
        seed=4,
        device="cpu",
    ) as (address, _):
        yield address


@pytest.fixture(scope="module", params=WIDTHS)
def opened(request: pytest.FixtureRequest, url: str) -> Iterator[Opened]:
    with open_page(request.param, url) as opened:
        opened.page.set_default_timeout(15_000)
        yield opened


def give(page: Any, field: str, path: Path) -> None:
    page.set_input_files(f"#{field} input[type=file]", str(path))


def go_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def tiles(page: Any, piece: str) -> list[str]:
    page.wait_for_selector(f"#{piece} .cp-tile")
    return page.locator(f"#{piece} .cp-tile .cp-caption").all_inner_texts()


def test_neighbours_of_an_upload(opened: Opened, photos: Path) -> None:
    page = opened.page
    page.wait_for_selector("#neighbors-samples button")
    assert page.locator("#neighbors-samples button").count() == 6
    give(page, "neighbors-upload", photos / "koala.jpg")
    found = tiles(page, "neighbors-found")
    assert len(found) == 6
    assert found[0].split() == [found[0].split()[0], "koala.png"]
    scores = [float(caption.split()[0]) for caption in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.95
    page.locator("#neighbors-found button").nth(1).click()  # its photograph becomes the query
    page.wait_for_function("document.querySelectorAll('#neighbors-found .cp-tile').length == 5")
    assert found[1].split()[1] in page.locator("#neighbors-picture").inner_text()


def test_neighbours_of_a_patch_by_click_and_by_key(opened: Opened) -> None:
    page = opened.page
    page.locator("#neighbors-samples button").first.click()
    page.get_by_label("Patch at a point").check()
    picture = page.locator("#neighbors-picture .cp-picture")
    picture.wait_for()
    picture.click(position={"x": 60, "y": 60})
    assert len(tiles(page, "neighbors-found")) == 5
    assert page.locator("#neighbors-found .cp-frame").count() == 5
    before = page.locator("#neighbors-picture .cp-frame").get_attribute("style")
    picture.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.querySelector('#neighbors-picture .cp-frame').getAttribute('style') != before", arg=before
    )


def test_similarity_of_a_point_by_click_and_by_key(opened: Opened) -> None:
    page = opened.page
    go_to(page, "Similarity")
    page.locator("#similarity-samples button").nth(2).click()
    picture = page.locator("#similarity-picture .cp-picture")
    picture.wait_for()
    picture.click(position={"x": 50, "y": 40})
    maps = tiles(page, "similarity-found")
    assert len(maps) == 6
    assert maps[0].startswith("itself")
    first = page.locator("#similarity-found img").first.get_attribute("src")
    picture.focus()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    changed = "before => document.querySelector('#similarity-found img').src != before"
    page.wait_for_function(changed, arg=first)
    second = page.locator("#similarity-found img").first.get_attribute("src")
    page.get_by_label("feature2").check()
    page.wait_for_function(changed, arg=second)
    assert not picture.locator(".cp-point").is_hidden()


def test_the_game_by_click_and_by_key(opened: Opened) -> None:
    page = opened.page
    go_to(page, "Guess")
    page.locator("#guess-board [data-cell='1']").click()
    page.wait_for_selector("#guess-board .cp-true img")
    said = page.locator("#guess-board .cp-answer").inner_text()
    truth = re.search(r"It lies ([a-z-]+)\.", said)
    assert truth is not None
    assert truth[1] in POSITIONS
    right = truth[1] == POSITIONS[1]
    assert f"You said “up”, {'right' if right else 'wrong'}." in said
    assert page.locator("#guess-board .cp-you b").inner_text() == f"{int(right)} of 1"
    assert opened.focused() == "Next pair"
    page.keyboard.press("Enter")
    page.wait_for_selector("#guess-board [data-cell]")
    page.wait_for_function("document.activeElement.dataset.cell == '0'")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#guess-board .cp-true img")
    assert "You said “up-right”" in page.locator("#guess-board .cp-answer").inner_text()
    assert page.locator("#guess-board .cp-model b").inner_text().endswith(" of 2")


def test_what_cannot_be_taken_is_told_and_the_page_lives_on(opened: Opened, photos: Path, tmp_path: Path) -> None:
    page = opened.page
    go_to(page, "Neighbours")
    page.get_by_label("Whole images").check()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes((photos / "panda.jpg").read_bytes()[:5000])
    said = page.locator("#neighbors-said [role=alert]")
    for name, reason in (("text.jpg", "not an image"), ("cut.jpg", "truncated")):
        if page.locator("#neighbors-upload [title=Clear]").count():
            page.locator("#neighbors-upload [title=Clear]").click()
            said.wait_for(state="detached")
        give(page, "neighbors-upload", tmp_path / name)
        said.wait_for()
        assert said.inner_text().startswith(f"{name}: ")
        assert reason in said.inner_text()
    page.locator("#neighbors-upload [title=Clear]").click()
    give(page, "neighbors-upload", photos / "panda.jpg")
    page.wait_for_function("document.querySelectorAll('#neighbors-found .cp-tile').length == 6")
    assert said.count() == 0


def test_every_control_is_reached_by_tab(opened: Opened) -> None:
    page = opened.page
    go_to(page, "Neighbours")
    page.get_by_role("tab", name="Neighbours").focus()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(opened.focused())
    wanted = ["Search on from koala.png", *(f"Take {name}.png" for name in ("koala", "flower_red"))]
    assert all(any(name == one for one in seen) for name in wanted), seen


def test_nothing_went_wrong_and_nothing_was_asked_of_others(opened: Opened, url: str) -> None:
    """All that the tests before have done on this page is counted."""
    assert opened.overflow() == 0
    assert [error for error in opened.errors if not any(own in error for own in GRADIOS_OWN)] == []
    assert len(opened.requests) > 20
    assert [request for request in opened.requests if not request.startswith(f"{url}/")] == []


def test_an_upload_that_is_too_large_is_told(opened: Opened, photos: Path, tmp_path: Path) -> None:
    """After the count of errors: Gradio asks for the progress of the upload that it has refused, and is told 404."""
    page = opened.page
    (tmp_path / "large.jpg").write_bytes(bytes(700_000))
    page.locator("#neighbors-upload [title=Clear]").click()
    give(page, "neighbors-upload", tmp_path / "large.jpg")
    toast = page.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert "maximum allowed size" in toast.inner_text()
    give(page, "neighbors-upload", photos / "moose.jpg")
    page.wait_for_function("document.querySelector('#neighbors-picture .cp-hint')?.textContent == 'moose.jpg'")
