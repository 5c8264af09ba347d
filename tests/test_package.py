"""The package as it is built, installed and imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import context_pred

HEAVY = ("torch", "torchvision", "numpy", "PIL", "requests", "huggingface_hub", "safetensors", "tqdm", "click")


def python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return done.stdout


def test_import_loads_nothing_heavy(root: Path) -> None:
    code = f"import sys, context_pred; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code, root).strip() == "[]"


def test_help_of_the_command_loads_no_torch(root: Path) -> None:
    code = (
        "import sys\nfrom context_pred.cli import main\n"
        "try: main(['extract', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'huggingface_hub') if m in sys.modules])"
    )
    assert python(code, root).splitlines()[-1] == "[]"


def test_names_and_cards_load_no_torch(root: Path) -> None:
    code = "import sys, context_pred; context_pred.list_models(); print('torch' in sys.modules)"
    assert python(code, root).strip() == "False"


@pytest.mark.parametrize("name", context_pred.__all__)
def test_every_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(context_pred, name) is not None
    assert name in dir(context_pred)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = context_pred.load_model


def test_type_checkers_and_the_lazy_table_see_the_same_names(root: Path) -> None:
    source = (root / "context_pred" / "__init__.py").read_text()
    block = re.search(r"^if TYPE_CHECKING:.*?\n((?:    .*\n)+)", source, re.MULTILINE)
    assert block is not None
    imported = {name.strip() for names in re.findall(r"import ([\w, ]+)", block.group(1)) for name in names.split(",")}
    assert imported == set(context_pred.__all__)
    assert context_pred.__all__ == sorted(context_pred.__all__, key=lambda name: (name.islower(), name))


def test_torch_hub_entry_gives_the_model(root: Path) -> None:
    import torch

    shipped = shipped_names()[0]
    model = torch.hub.load(str(root), "context_pred", shipped, source="local")
    assert model.card.name == context_pred.model_info(shipped).name
    assert not model.training


def test_citation_and_package_have_one_version(root: Path) -> None:
    assert f"version: {context_pred.__version__}\n" in (root / "CITATION.cff").read_text()


def shipped_names() -> list[str]:
    from context_pred.zoo.registry import shipped

    return [card.name for card in shipped()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, set[str]]:
    """The names of the files in a wheel and an sdist, built as pip builds them, without isolation."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    out = str(tmp_path_factory.mktemp("dist"))
    (tarball,) = SdistBuilder(str(root)).build(directory=out, versions=["standard"])
    (archive,) = WheelBuilder(str(root)).build(directory=out, versions=["standard"])
    with tarfile.open(tarball) as tar:
        source = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(archive) as zipped:
        return {"sdist": source, "wheel": set(zipped.namelist())}


def test_wheel_has_the_package_the_recipes_the_cards_and_the_shipped_weights(
    built: dict[str, set[str]], root: Path
) -> None:
    wheel = {name for name in built["wheel"] if ".dist-info/" not in name}
    package = {
        path.relative_to(root).as_posix()
        for kind in ("py", "toml")
        for path in (root / "context_pred").rglob(f"*.{kind}")
    }
    weights = {
        f"context_pred/{path.relative_to(root).as_posix()}"
        for suffix in ("json", "safetensors", "md")
        for path in (root / "weights").rglob(f"*.{suffix}")
    }
    assert wheel == package | weights | {"context_pred/py.typed"}
    for name in shipped_names():
        assert {f"context_pred/weights/{name}/card.json", f"context_pred/weights/{name}/model.safetensors"} <= wheel


def test_sdist_can_be_tested_and_built(built: dict[str, set[str]]) -> None:
    sdist = built["sdist"]
    assert {"pyproject.toml", "README.md", "LICENSE", "model_zoo.md", "tests/conftest.py", "docs/index.md"} <= sdist
    assert any(name.startswith("weights/") and name.endswith(".safetensors") for name in sdist)
    assert any(name.startswith("docs/photos/") and name.endswith(".jpg") for name in sdist)
    assert not [name for name in sdist if name.startswith((".venv", "build/", "dist/"))]


def test_every_card_that_ships_is_small_enough_for_a_repository(root: Path) -> None:
    for name in shipped_names():
        card = json.loads((root / "weights" / name / "card.json").read_text())
        assert (root / "weights" / name / card["file"]).stat().st_size < 50e6


def test_declared_dependencies_are_the_promised_ones(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    assert names == {"torch", "torchvision", "huggingface-hub", "safetensors", "requests", "tqdm", "click"}
    assert "torch>=2.6" in project["dependencies"]


def test_photographs_are_small_and_credited(photos: Path) -> None:
    credits = (photos / "README.md").read_text()
    files = sorted(photos.glob("*.jpg"))
    assert 12 <= len(files) <= 20
    for file in files:
        assert file.stat().st_size < 50_000, file
        row = next(line for line in credits.splitlines() if line.startswith(f"| `{file.name}` |"))
        author, licence = (cell.strip() for cell in row.split("|")[3:5])
        assert author, file
        assert licence, file
