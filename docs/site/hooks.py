"""What MkDocs does not do by itself: pages that lie outside docs/, and links that hold on GitHub and in the site."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

BESIDE = {
    "model_zoo.md": "model_zoo.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages outside docs/: their path in the repository, and in the site."""

_FENCED = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_WHOLE = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)\)")
"""A link with its words; one to a file of the repository that is no page keeps the words alone."""
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/ or are made from the code."""
    for source, uri in BESIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        for uri, content in notebook(path).items():
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between pages of the site."""
    here = page.file.src_uri
    home = next((source for source, uri in BESIDE.items() if uri == here), f"docs/{here}")

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), match[1]))
        uri = BESIDE.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{match[2] or ''})"

    def named(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), match[2]))
        page_or_picture = target in BESIDE or target.startswith("docs/")
        return match[1] if not page_or_picture and (ROOT / target).is_file() else match[0]

    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(turned, _WHOLE.sub(named, part)) for part in parts)


_DRAWING = re.compile(r'<img alt="([^"]*)" src="([^"]*\.svg)"\s*/?>')


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put drawings into the page itself, so that their ink is the page's, light or dark."""

    def drawn(match: re.Match[str]) -> str:
        home = posixpath.dirname(page.file.src_uri)
        svg = (ROOT / "docs" / posixpath.normpath(posixpath.join(home, match[2]))).read_text(encoding="utf-8")
        return re.sub(r"<style>.*?</style>", f"<desc>{match[1]}</desc>", svg, flags=re.DOTALL)

    return _DRAWING.sub(drawn, html)


def notebook(path: Path) -> dict[str, str | bytes]:
    """Turn an executed notebook into a page and its pictures: {uri: content}."""
    parts, made = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            for kind, data in output.get("data", {}).items():
                if kind in ("image/png", "image/jpeg"):
                    uri = f"notebooks/{path.stem}-{len(made) + 1}.{kind.removeprefix('image/')}"
                    made[uri] = base64.b64decode("".join(data))
                    parts.append(f"![What the code above shows]({posixpath.basename(uri)})")
    away = f"*This page is a notebook: [{path.name}]({path.name}), with what it showed when it was run.*"
    page = "\n\n".join([parts[0].partition("\n")[0], away, parts[0].partition("\n")[2], *parts[1:]])
    return {f"notebooks/{path.stem}.md": page, **made}


def commands() -> str:
    """Write the page of all commands from what each says of itself."""
    from context_pred.cli import main

    return "\n".join(["# Commands\n", *_command(main, "context-pred", 2)])


def _command(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    yield f"{'#' * level} {path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"{' '.join((command.help or '').replace(chr(8), '').split())}\n"
    rows = [record for p in command.params if (record := p.get_help_record(context)) is not None]
    if rows:
        yield "| option | meaning |\n| --- | --- |"
        yield from (f"| `{_cell(spelled)}` | {_words(text)} |" for spelled, text in rows)
        yield ""
    if command.epilog:
        example = command.epilog.partition("Example:")[2].strip()
        yield f"```text\n$ {example}\n```\n"
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from _command(below, f"{path} {name}", level + (path != "context-pred"))


def _words(text: str) -> str:
    return _cell(text).replace("[", "\\[")  # "[default: 1] [x>=1]" is no link


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
