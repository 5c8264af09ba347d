"""Runs the notebooks of docs/notebooks in a folder of their own.

python tests/notebooks.py --write    runs all of them and stores what they show
"""

from __future__ import annotations

import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@dataclass(frozen=True)
class Ran:
    """An executed notebook.

    Attributes:
        notebook: With its outputs.
        seconds: Of processor time, all threads together.
    """

    notebook: Any
    seconds: float


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute(path: Path, place: Path) -> Ran:
    """Run a notebook from the top in a new process, as from docs/notebooks but writing nothing there.

    Args:
        path: The notebook.
        place: An empty folder; the photographs are linked into it.
    """
    import nbformat
    from nbclient import NotebookClient

    here = place / "docs" / "notebooks"
    here.mkdir(parents=True)
    (place / "docs" / "photos").symlink_to(ROOT / "docs" / "photos")
    notebook = nbformat.read(path, as_version=4)
    before = _processor_time()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(here)}}).execute()
    return Ran(notebook, _processor_time() - before)


def pictures(notebook: Any) -> list[bytes]:
    """Return the pictures among the outputs, as PNG or JPEG."""
    import base64

    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            for kind, data in output.get("data", {}).items():
                if kind in ("image/png", "image/jpeg"):
                    found.append(base64.b64decode(data))
    return found


def _stored(notebook: Any) -> Any:
    """Drop what changes from run to run: times, which kernel it was, and what libraries say of this machine."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__" and "--write" in sys.argv[1:]:
    import nbformat

    asked = [word for word in sys.argv[1:] if not word.startswith("--")]
    for one in NOTEBOOKS:
        if not asked or one.stem in asked:
            with tempfile.TemporaryDirectory() as folder:
                ran = execute(one, Path(folder))
            nbformat.write(_stored(ran.notebook), one)
            sys.stdout.write(f"{one.name}: {ran.seconds:.0f} s of processor time, {one.stat().st_size / 1000:.0f} kB\n")
