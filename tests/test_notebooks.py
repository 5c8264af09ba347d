"""The notebooks run from the top, in less than a minute of one core, and what they show is stored with them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import docs_names
import notebooks
import numpy as np
import pytest
from PIL import Image

LIMIT = 60
"""Seconds of processor time."""


def _id(path: Path) -> str:
    return path.stem


def _checked(notebook: object) -> int:
    """Look at every picture; return how many there are."""
    found = notebooks.pictures(notebook)
    for data in found:
        with Image.open(io.BytesIO(data)) as picture:
            assert min(picture.size) > 60
            pixels = np.asarray(picture.convert("RGB"), dtype=float)
        assert pixels.std() > 20, "a blank picture"
        rows = pixels.mean((1, 2)) < 3
        assert rows.mean() < 0.5, "mostly black"
    return len(found)


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=_id)
def test_notebook_runs_and_draws(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason='nbclient is not installed: pip install "context-pred[docs]"')
    pytest.importorskip("ipykernel", reason='ipykernel is not installed: pip install "context-pred[docs]"')
    before = path.read_bytes()
    ran = notebooks.execute(path, tmp_path)
    assert ran.seconds < LIMIT
    assert _checked(ran.notebook) > 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=_id)
def test_outputs_are_stored_whole_small_and_without_places_of_a_machine(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason='nbformat is not installed: pip install "context-pred[docs]"')
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from the top"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert _checked(notebook) > 1
    assert path.stat().st_size < 600_000
    text = json.dumps(
        [[cell.source, [dict(o) for o in cell.get("outputs", ()) if "data" not in o]] for cell in notebook.cells]
    )
    assert not [place for place in ("/root", "/home", "/tmp", "/work", "site-packages") if place in text]


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=_id)
def test_the_names_in_it_are_the_librarys(path: Path) -> None:
    names = docs_names.Names()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert names.read("".join(cell["source"])) == []


def test_the_three_are_there() -> None:
    assert {path.stem for path in notebooks.NOTEBOOKS} == {"extract_and_neighbors", "fine_tune", "pretrain"}
