"""The six first successes of docs/integrations.md: run as they stand there, and what comes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import context_pred

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "integrations.md"
SUCCESSES = ("extract", "search", "probe", "fine-tune", "detector", "onnx")


def blocks() -> dict[str, str]:
    """Return the marked blocks, and as "data" and "targets" the two that prepare what these work on."""
    text = PAGE.read_text(encoding="utf-8")
    marked = dict(re.findall(r"^<!-- success: (\S+) -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    plain = re.findall(r"(?<!-->\n)^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {**marked, "data": plain[0], "targets": plain[1]}


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("successes")
    (folder / "docs").symlink_to(ROOT / "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        run("data")
        yield folder


def run(*names: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    torch.manual_seed(0)
    for name in names:
        exec(compile(blocks()[name], f"{PAGE.name}: {name}", "exec"), namespace)
    return namespace


def test_all_six_are_there():
    assert set(SUCCESSES) <= set(blocks())


@pytest.mark.parametrize("name", SUCCESSES)
def test_three_lines(name: str):
    lines = [line for line in blocks()[name].splitlines() if line.strip()]
    assert len(lines) <= 3
    assert not any(";" in line for line in lines)


def test_extract():
    found = run("extract")
    assert len(found["paths"]) == 19
    row = [Path(path).stem for path in found["paths"]].index("koala")
    model = context_pred.load_pretrained("resnet18_1xb64-coslr-300k")
    with Image.open(ROOT / "docs" / "photos" / "koala.jpg") as image, torch.no_grad():
        expected = model.embed(model.transform(image)[None])[0].numpy()
    np.testing.assert_allclose(found["features"]["feature5"][row], expected, rtol=1e-3, atol=1e-4)


def test_search():
    matches = run("search")["matches"]
    assert [Path(match.path).stem for match in matches] == ["flower_yellow", "flower_orange"]
    assert 1 > matches[0].score > matches[1].score > 0.7


def test_probe():
    """Right on the two photographs that were kept, and on each of the others when it is left out."""
    from sklearn.base import clone
    from sklearn.model_selection import LeaveOneOut, cross_val_score

    found = run("data", "probe")
    images = found["ContextFeatures"](layer="feature3")
    kept = ["docs/photos/gate_berlin.jpg", "docs/photos/flower_red.jpg"]
    assert list(found["probe"].predict(images.transform(kept))) == ["building", "flower"]
    scores = cross_val_score(clone(found["probe"]), images.transform(found["files"]), found["labels"], cv=LeaveOneOut())
    assert scores.mean() >= 5 / 6


@pytest.mark.filterwarnings("ignore")
def test_fine_tune():
    """Every stage has moved, and what was learned separates the kinds that it was learned on."""
    found = run("data", "fine-tune")
    classifier = found["classifier"]
    assert classifier.classes == ("building", "flower")
    assert not classifier.training
    start = context_pred.load_pretrained("resnet18_1xb64-coslr-300k").backbone
    for name, parameter in classifier.backbone.named_parameters():
        assert not torch.equal(parameter, start.get_parameter(name)), name
    x = torch.stack([classifier.transform(Image.open(file)) for file in found["files"]])
    with torch.no_grad():
        logits = classifier(x)
    margin = logits[:, 1] - logits[:, 0]
    assert margin[3:].mean() > margin[:3].mean()


def test_detector():
    found = run("targets", "detector")
    detector, losses = found["detector"], found["losses"]
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01)
    totals = []
    for _ in range(3):
        loss = sum(losses.values())
        totals.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses = detector(found["images"], found["targets"])
    assert totals[-1] < totals[0]
    assert not any(
        module.training for module in detector.backbone.body.modules() if "BatchNorm" in type(module).__name__
    )


def test_onnx():
    import onnxruntime

    file = run("onnx")["file"]
    model = context_pred.load_pretrained("resnet18_1xb64-coslr-300k")
    with Image.open(ROOT / "docs" / "photos" / "panda.jpg") as image, torch.no_grad():
        x = model.transform(image)[None]
        expected = model.embed(x, "feature3").numpy()
    (found,) = onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
