"""Every page runs: its Python blocks in one namespace, its `context-pred` lines in between, in the page's own order."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import docs_names
import pytest
from click import ClickException
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


LANGUAGES = {"python", "sh", "text"}
INSTALLS = re.compile(r"^(\S*pip install|python3 -m venv|\.venv/bin/pip|\.ci/run)\b")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    network: bool


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^(<!-- network -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[2], match[3], line, bool(match[1])))
    return found


def run_command(line: str) -> None:
    from context_pred.cli import main

    result = CliRunner().invoke(main, shlex.split(line)[1:], prog_name="context-pred")
    assert result.exit_code == 0, f"{line}\n{result.output}"


def run_page(page: Path, network: bool) -> int:
    """Run the blocks that need (or do not need) the internet; return how many ran."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.network != network:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
            ran += 1
        elif block.language == "sh":
            for line in block.code.splitlines():
                if line.startswith("context-pred "):
                    run_command(line)
                    ran += 1
    return ran


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that has the clone's docs/, so that pages write nothing into the clone."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_page_runs(page: Path, workplace: Path) -> None:
    expected = sum(
        1 if block.language == "python" else sum(line.startswith("context-pred ") for line in block.code.splitlines())
        for block in blocks(page)
        if not block.network
    )
    assert run_page(page, network=False) == expected


@pytest.mark.network
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.network for b in blocks(p))], ids=_id)
def test_page_runs_with_the_network(page: Path, workplace: Path) -> None:
    assert run_page(page, network=True) > 0


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.network for b in blocks(p))], ids=_id)
def test_what_needs_the_network_names_what_there_is(page: Path) -> None:
    names = docs_names.Names()
    for block in blocks(page):
        if block.language == "python":
            wrong = names.read(block.code)
            assert not (block.network and wrong), f"{page.name}:{block.line}: {wrong}"
        elif block.language == "sh" and block.network:
            for line in block.code.splitlines():
                if line.startswith("context-pred "):
                    docs_names.parse_command(line)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("import context_pred\ncontext_pred.load_pretraind('x')", "context_pred.load_pretraind"),
        ("import context_pred\ncontext_pred.load_pretrained('x', devise='cpu')", "devise"),
        ("import context_pred as c\nm = c.load_pretrained('x')\nm.feature(1)", "m.feature"),
        ("import context_pred as c\nm = c.load_pretrained('x')\nm.features(1, layer='feature4')", "layer"),
        ("from context_pred import extrac", "extrac"),
        ("from context_pred import extract\nextract.run('photos', 'x', out='y', pol='gap')", "pol"),
        ("from context_pred.discover.index import NeighborIndex\nNeighborIndex.biuld('photos')", "biuld"),
    ],
)
def test_a_wrong_name_is_found_without_running_it(code: str, wrong: str) -> None:
    assert wrong in str(docs_names.Names().read(code))


def test_a_right_name_is_taken() -> None:
    code = "from context_pred import load_pretrained\nm = load_pretrained('x', device='cpu')\n"
    assert docs_names.Names().read(code + "m.embed(m.transform(1), layer='a')") == []


@pytest.mark.parametrize(
    "line", ["context-pred zoo pul x", "context-pred extract docs/photos --ot x", "context-pred zoo pull x --revison 1"]
)
def test_a_wrong_command_is_found_without_running_it(line: str) -> None:
    with pytest.raises(ClickException):
        docs_names.parse_command(line)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_block_has_a_language_and_every_shell_line_is_known(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}"
        if block.language == "sh":
            for line in block.code.splitlines():
                assert line.startswith("context-pred ") or INSTALLS.match(line), f"{page.name}:{block.line}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_model_and_recipe_named_is_there() -> None:
    from context_pred import list_models
    from context_pred.pretrain import list_recipes

    known = {*list_models(), *list_recipes()}
    for page in PAGES:
        for name in re.findall(r"\bresnet\d+_\d+xb\d+-[a-z0-9-]+(?:\.\d{8})?", page.read_text(encoding="utf-8")):
            assert name in known or name == "resnet50_8xb64-stepr-70e", f"{page.name}: {name}"


def test_readme_begins_with_the_two_commands_of_a_newcomer() -> None:
    first, second = [block for block in blocks(ROOT / "README.md") if block.language == "sh"][:2]
    assert first.code.count("\n") == second.code.count("\n") == 1
    assert second.code.endswith("-m pytest\n")
    steps = [step.strip() for step in first.code.split("&&")]
    offline = [step for step in steps if "context-pred" in step]
    assert [shlex.split(step)[2] for step in offline] == ["extract", "neighbors"]
    assert all(step.startswith("HF_HUB_OFFLINE=1 .venv/bin/context-pred ") for step in offline)


def test_first_command_of_the_readme_shows_what_it_promises(workplace: Path) -> None:
    """The README's first command after its installation, with the wall around the machine that every test has."""
    from PIL import Image

    first = blocks(ROOT / "README.md")[0]
    for step in first.code.split("&&"):
        if "bin/context-pred " in step:
            run_command(step.strip().partition(" .venv/bin/")[2])
    assert (workplace / "features.safetensors").stat().st_size > 0
    with Image.open(workplace / "neighbors" / "neighbors.png") as picture:
        assert min(picture.size) > 300
