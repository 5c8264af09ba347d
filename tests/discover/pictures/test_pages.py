"""The pages in a browser: nothing goes wrong, nothing is fetched, telephones and keyboards can use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import WIDTHS, Opened, open_page

from context_pred.discover.pictures import map as collection_map
from context_pred.discover.pictures import similarity
from context_pred.model import ContextPredictionModel

pytestmark = pytest.mark.browser


def sound(opened: Opened, page: Path) -> None:
    assert opened.errors == []
    assert opened.requests == [page.resolve().as_uri()]
    assert opened.overflow() == 0
    assert opened.page.evaluate("[...document.images].every(i => i.hasAttribute('alt'))")


@pytest.mark.parametrize("width", WIDTHS)
def test_similarity(folder: Path, tmp_path: Path, model: ContextPredictionModel, width: int) -> None:
    options = {"layer": "feature3", "side": 3, "progress": False, "device": "cpu"}
    query = folder / "animals" / "koala.png"
    made = similarity.run(query, folder, out=tmp_path / "out", model=model, at="center", **options)
    with open_page(width, made.page) as opened:
        page = opened.page
        sound(opened, made.page)
        shown = "[...document.querySelectorAll('#others figcaption')].map(f => f.textContent)"
        first = page.evaluate(shown)
        assert first[0].startswith("1.00 koala.png, the photograph itself")
        assert [f"{peak:.2f} {Path(path).name}" for path, peak in made.found] == pytest.approx(first[1:], abs=0)
        assert page.locator("#points [aria-pressed=true]").count() == 1
        # By mouse: another point, other maps.
        page.locator("#points button").first.click()
        clicked = page.evaluate(shown)
        assert clicked != first
        assert opened.focused().startswith("Row 1 of")
        # By keyboard: back to where the page began, and one key alone changes nothing.
        page.keyboard.press("ArrowRight")
        assert opened.focused().endswith("column 2 of " + opened.focused().rpartition(" ")[2])
        assert page.evaluate(shown) == clicked
        page.keyboard.press("Enter")
        assert page.evaluate(shown) != clicked
        page.keyboard.press("ArrowUp")
        assert opened.focused().startswith("Row 1 of")
        assert page.evaluate("document.getElementById('status').textContent").startswith("Most alike: ")
        canvas = page.evaluate(
            "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some(v => v > 0))"
            "(document.querySelector('.map canvas'))"
        )
        assert canvas
        page.locator("#colored").check()
        assert page.locator(".map canvas").first.is_hidden()
        sound(opened, made.page)


@pytest.mark.parametrize("width", WIDTHS)
def test_map(folder: Path, tmp_path: Path, model: ContextPredictionModel, width: int) -> None:
    made = collection_map.run(
        folder, out=tmp_path / "out", model=model, labels=True, progress=False, device="cpu", workers=0
    )
    with open_page(width, made.page) as opened:
        page = opened.page
        sound(opened, made.page)
        name = "document.getElementById('name').textContent"
        thumbnails = page.locator(".one")
        assert thumbnails.count() == 6
        thumbnails.nth(3).hover()
        hovered = page.evaluate(name)
        assert hovered == thumbnails.nth(3).get_attribute("data-name")
        thumbnails.nth(4).click()
        kept = thumbnails.nth(4).get_attribute("data-name")
        page.mouse.move(0, 0)
        assert page.evaluate(name) == kept != hovered
        assert page.locator("#large").get_attribute("alt") == thumbnails.nth(4).locator("img").get_attribute("alt")
        # By keyboard every thumbnail can be reached from the first.
        reached = page.evaluate(
            """() => {
              const seen = new Set([0]), left = [0];
              while (left.length) {
                const from = left.pop();
                for (const [dx, dy] of Object.values(steps)) {
                  const to = next(from, dx, dy);
                  if (to >= 0 && !seen.has(to)) { seen.add(to); left.push(to); }
                }
              }
              return seen.size;
            }"""
        )
        assert reached == 6
        thumbnails.nth(4).click()  # let go: the keys may lead to it, wherever the map has put it
        thumbnails.first.focus()
        before = page.evaluate(name)
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight"):
            page.keyboard.press(key)
        assert page.evaluate(name) != before
        page.keyboard.press("Enter")
        assert page.locator(".one[aria-pressed=true]").count() == 1
        page.locator("#size").fill("150")
        assert page.locator(".one").first.bounding_box()["width"] > 130
        sound(opened, made.page)
