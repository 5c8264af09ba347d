"""Names and cards: what is listed, what is meant, what is refused; and the facts on the published cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from context_pred.card import Card
from context_pred.errors import UnknownNameError, WeightsError
from context_pred.zoo import list_models, model_info, registry

ROOT = Path(__file__).resolve().parents[2]
PLAIN = "resnet50_8xb64-steplr-70e"
TAGS = [f"{PLAIN}.20211213", f"{PLAIN}.20220225", f"{PLAIN}.20220825"]


def put(folder: Path, name: str, *aliases: str) -> None:
    (folder / name).mkdir()
    Card(name=name, backbone="resnet18", aliases=aliases).write(folder / name / "card.json")


def test_the_published_names() -> None:
    assert list_models("resnet50*") == [PLAIN, *TAGS]
    assert set(list_models()) >= {PLAIN, *TAGS}
    assert model_info(PLAIN) == model_info(TAGS[2])


def test_names_are_in_natural_order_and_match_globs(registry_folder: Path) -> None:
    for name in ("resnet101_x.1", "resnet18_x.2", "resnet18_x.10", "contextnet.1"):
        put(registry_folder, name)
    assert list_models() == ["contextnet.1", "resnet18_x.2", "resnet18_x.10", "resnet101_x.1"]
    assert list_models("resnet18*") == ["resnet18_x.2", "resnet18_x.10"]
    assert list_models("*.1") == ["contextnet.1", "resnet101_x.1"]
    assert list_models("resnet18") == []


def test_a_card_is_all_it_takes(registry_folder: Path) -> None:
    assert list_models() == []
    put(registry_folder, "resnet18_x.1", "resnet18_x")
    assert list_models() == ["resnet18_x", "resnet18_x.1"]
    assert model_info("resnet18_x").name == "resnet18_x.1"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("resnet50_8xb64-steplr-70", f"'{PLAIN}'"),  # a letter short
        ("resnet50_8xb64-steplr-70e.2022", f"'{PLAIN}.20220"),  # half a tag
        ("resnet50_8xb64-steplr-70e.20200101", f"'{PLAIN}.20"),  # a tag there never was
        ("ResNet50_8xb64-steplr-70e", f"'{PLAIN}'"),  # capitals
        ("relative-loc_resnet50_8xb64-steplr-70e_in1k", f"'{PLAIN}'"),  # upstream's longer name
        ("openmmlab/relative-loc", "'hf-hub:openmmlab/relative-loc@REVISION'"),  # how transformers writes a Hub id
        ("", "Accepted:"),
    ],
)
def test_an_unknown_name_says_what_may_have_been_meant(given: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        model_info(given)
    text = str(error.value)
    assert repr(given) in text
    assert meant in text
    assert PLAIN in text


def test_two_cards_with_one_name_are_refused(registry_folder: Path) -> None:
    put(registry_folder, "resnet18_x.1", "resnet18_x")
    put(registry_folder, "resnet18_x.2", "resnet18_x")
    with pytest.raises(WeightsError, match=r"'resnet18_x': resnet18_x\.1 and resnet18_x\.2"):
        list_models()


def test_a_card_in_the_wrong_folder_is_refused(registry_folder: Path) -> None:
    put(registry_folder, "resnet18_x.1")
    (registry_folder / "resnet18_x.1").rename(registry_folder / "resnet18_y.1")
    with pytest.raises(WeightsError, match=r"resnet18_y\.1.card\.json is the card of 'resnet18_x\.1'"):
        list_models()


def test_names_and_cards_import_nothing_heavy() -> None:
    code = (
        "import sys; from context_pred.zoo import list_models, model_info; [model_info(n) for n in list_models()];"
        "print([m for m in ('torch', 'torchvision', 'huggingface_hub', 'requests', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The published cards


@pytest.mark.parametrize("name", TAGS)
def test_a_published_card_pins_its_file(name: str) -> None:
    card = model_info(name)
    date = name.rpartition(".")[2]
    assert card.url is not None
    assert card.url.startswith("https://download.openmmlab.com/mmselfsup/")
    assert card.url.endswith(f"_{date}-{card.url_sha256_prefix}.pth")
    assert len(card.url_sha256_prefix or "") == 8
    assert card.license == "Apache-2.0"
    assert card.backbone == "resnet50"
    assert card.num_params == 40_330_312
    assert card.pair_layers
    for metric in card.metrics:
        float(metric.value)
        assert metric.source
        assert metric.measured_on == name or (metric.measured_on == "" and "Not stated" in metric.note)


def test_which_number_belongs_to_which_file() -> None:
    linear = {
        name: [m.value for m in model_info(name).metrics if m.benchmark == "Linear, average pool"] for name in TAGS
    }
    assert linear == {TAGS[0]: ["39.65"], TAGS[1]: ["38.78"], TAGS[2]: ["40.4"]}
    benchmarks = {m.benchmark for m in model_info(TAGS[0]).metrics}
    assert benchmarks >= {"VOC07 SVM", "VOC07 low-shot SVM", "Faster R-CNN C4, 24k", "Mask R-CNN FPN, 1x"}
    assert any(TAGS[0] in note for note in model_info(PLAIN).notes)
    # Rows whose file is stated nowhere: Places205 and kNN.
    assert sum(m.measured_on == "" for m in model_info(TAGS[1]).metrics) == 9


def test_channel_and_label_orders_of_the_published_files() -> None:
    old, mid, new = (model_info(name) for name in TAGS)
    assert (old.channel_order, mid.channel_order, new.channel_order) == ("bgr", "rgb", "rgb")
    assert [c.source_label_order for c in (old, mid, new)] == ["raster", "raster", "openmmlab-1.x"]
    assert old.mean == mid.mean == (0.485, 0.456, 0.406)
    assert [round(v * 255, 9) for v in new.mean + new.std] == [124, 117, 104, 59, 58, 58]
    assert [c.patch_sampler["preset"] for c in (old, mid, new)] == ["openmmlab-0.x", "openmmlab-0.x", "openmmlab-1.x"]


@pytest.mark.parametrize("path", sorted((ROOT / "weights").glob("*/card.json")), ids=lambda p: p.parent.name)
def test_every_card_makes_its_sampler_and_is_in_the_library_s_own_form(path: Path) -> None:
    from context_pred.patches import sampler_from_config

    card = Card.read(path)
    sampler_from_config(card.patch_sampler)
    assert path.read_text(encoding="utf-8") == card.to_json()
    assert json.loads(path.read_text(encoding="utf-8"))["name"] == path.parent.name


def test_natural_order_compares_mixed_names() -> None:
    names = ["b", "a10", "a9", "1", "a", "10", "a9b", ""]
    assert sorted(names, key=registry.natural) == ["", "1", "10", "a", "a9", "a9b", "a10", "b"]
