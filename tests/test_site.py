"""The documentation's site: built strictly, whole, self-contained, and fit to be read in a browser."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import public_api
import pytest
from browser import WIDTHS, open_page

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install "context-pred[docs]"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or an anchor that leads nowhere fails here."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for source in sources:
        page = site / source.with_suffix(".html")
        assert (page.with_name("index.html") if source.name == "README.md" else page).exists(), source
    for page in ("model_zoo", "contributing", "changelog", "benchmarks", "reference/commands"):
        assert (site / f"{page}.html").exists()


def test_the_zoo_in_the_site_is_the_generated_one(site: Path) -> None:
    from context_pred import list_models

    text = (site / "model_zoo.html").read_text(encoding="utf-8")
    assert all(name in text for name in list_models())


def test_every_public_name_has_an_entry_in_the_reference(site: Path) -> None:
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    entries = {line.split(" ")[0] for line in inventory.splitlines()}
    named = [name for name in public_api.public() if name.kind in ("function", "class", "method", "property", "alias")]
    aliases = [(name.path, name.signature.removeprefix(" is ")) for name in named if name.kind == "alias"]
    missing = []
    for name in named:
        path = name.path
        spelled = {path, f"{path}.{path.rpartition('.')[2]}"}  # a function in a module of its own name
        for one, other in aliases:
            spelled |= {other + path.removeprefix(one)} if f"{path}.".startswith(f"{one}.") else set()
            spelled |= {one + path.removeprefix(other)} if f"{path}.".startswith(f"{other}.") else set()
        if not entries & spelled:
            missing.append(path)
    assert not missing, f"{missing}: add them to a page of docs/reference"


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for line in public_api.commands():
        command, _, option = line.partition(" -")
        assert re.search(r"^[a-z -]+", command)[0].strip() in text, line
        assert not option or f"-{option.split()[0]}" in text, line


_LOADS = re.compile(
    r"<(?:script|img|iframe|source|object)\b[^>]*?\b(?:src|data)=[\"']?(https?:[^\"'\s>]+)"
    r"|<link\b[^>]*?href=[\"']?(https?:[^\"'\s>]+)|url\([\"']?(https?:[^\"')]+)|@import [\"']?(https?:[^\"']+)"
)


def test_nothing_is_loaded_from_another_machine(site: Path) -> None:
    for path in [*pages(site), *site.rglob("*.css")]:
        assert not _LOADS.findall(path.read_text(encoding="utf-8")), path.name


def test_no_drawing_or_picture_is_missing(site: Path) -> None:
    for path in pages(site):
        for source in re.findall(r"""<img\b[^>]*?\bsrc=["']([^"']+)["']""", path.read_text(encoding="utf-8")):
            assert source.startswith("data:") or (path.parent / source).exists(), f"{path.name}: {source}"


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site behind a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_without_errors_and_without_other_machines(site: Path, served: str, width: int) -> None:
    wrong: list[str] = []
    with open_page(width, served) as opened:
        for path in pages(site):
            name = path.relative_to(site).as_posix()
            opened.errors.clear()
            opened.page.goto(served + name, wait_until="load")
            if opened.overflow():
                wrong.append(f"{name} is {opened.overflow()} px wider than the window")
            broken = opened.page.evaluate(
                "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            )
            left = [error for error in opened.errors if "ERR_ABORTED" not in error]  # the icon of the page before
            wrong += [f"{name}: {text}" for text in [*left, *broken]]
        beyond = {request for request in opened.requests if not request.startswith(served)}
    assert not wrong, "\n".join(wrong)
    assert not beyond


@pytest.mark.browser
def test_the_site_opens_and_searches_as_files(site: Path) -> None:
    with open_page(1440, site / "index.html", wait="networkidle") as opened:
        opened.page.fill("input.md-search__input", "fine-tun")
        opened.page.wait_for_selector(".md-search-result__item a", timeout=90_000)
        assert opened.page.locator(".md-search-result__item").count() > 0
        assert [error for error in opened.errors if "ERR_ABORTED" not in error] == []
        assert all(request.startswith("file:") for request in opened.requests)


@pytest.mark.browser
def test_drawings_can_be_read_in_the_dark(served: str) -> None:
    """The ink of a drawing follows the page's, whatever the system says and the reader chose."""
    script = """() => [...document.querySelectorAll('svg.drawing')].map(
        e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"""
    with open_page(1440, f"{served}method.html") as opened:
        light = opened.page.evaluate(script)
        opened.page.evaluate("document.body.setAttribute('data-md-color-scheme', 'slate')")
        dark = opened.page.evaluate(script)
    assert len(light) == len(dark) > 0
    for pair in [*light, *dark]:
        ink, paper = (_luminance(color) for color in pair)
        bright, dim = max(ink, paper), min(ink, paper)
        assert (bright + 0.05) / (dim + 0.05) > 4.5, pair


def _luminance(color: str) -> float:
    """WCAG's relative luminance of "rgb(…)" or "rgba(…)", laid over what lies on the other side of grey."""
    red, green, blue, *alpha = (float(value) for value in re.findall(r"[\d.]+", color))
    base = 255.0 if red + green + blue < 383 else 0.0
    share = alpha[0] if alpha else 1.0
    linear = []
    for value in (red, green, blue):
        level = (share * value + (1 - share) * base) / 255
        linear.append(level / 12.92 if level <= 0.03928 else ((level + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "docs" / "site", copy / "docs" / "site")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "model_zoo.md", "benchmarks/README.md"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("# A page\n")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    (copy / "mkdocs.yml").write_text(config, encoding="utf-8")
    (copy / "docs" / "index.md").write_text("# Start\n\n[away](index.md#nowhere)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
