"""The shortcut audit: a planted cheat is found, an honest network is not accused, and the figures are what they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from context_pred import ContextPredictionModel, GridPatchSampler, RandomPairSampler
from context_pred.card import Card
from context_pred.cli import main
from context_pred.errors import ImageError, InvalidInputError
from context_pred.patches import PatchPairs, cut_boxes, sampler_from_config
from context_pred.patches.layout import OFFSETS
from context_pred.pretext import measure, pretext_loss
from context_pred.pretrain import audit
from context_pred.pretrain.audit import pairs as audit_pairs
from context_pred.pretrain.audit import places as audit_places
from context_pred.pretrain.audit.findings import _places, below_chance

SAMPLER = {"type": "GridPatchSampler", "crop": 60, "patch": 16, "grayscale": 0.5, "pairs": "adjacent"}
CPU = torch.device("cpu")


def tinted(rng: np.random.Generator, height: int = 84, width: int = 108) -> Image.Image:
    """Noise of random contrast whose colour tells the place: red against green x, blue y; grey, it is noise alone."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    gray = 128 + rng.uniform(4, 10) * rng.standard_normal((height, width))
    red, blue = 60 * x, 60 * y
    green = -(0.299 * red + 0.114 * blue) / 0.587
    pixels = np.stack([gray + red, gray + green, gray + blue], 2)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def honest() -> ContextPredictionModel:
    torch.manual_seed(0)
    card = Card("random", "resnet18", neck_channels=32, patch_sampler=SAMPLER)
    return ContextPredictionModel.from_card(card)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty tinted pictures."""
    path = tmp_path_factory.mktemp("tinted")
    rng = np.random.default_rng(0)
    for k in range(20):
        tinted(rng).save(path / f"{k}.png")
    return path


@pytest.fixture(scope="module")
def cheat() -> ContextPredictionModel:
    """A random backbone whose pair layers have learned, on other tinted pictures, to read the place off the colours."""
    model = honest()
    model.card = model.card.replace(name="cheat")
    sampler = GridPatchSampler(crop=60, patch=16, grayscale=0.0, pairs="adjacent")
    rng = np.random.default_rng(1)
    images = torch.stack([torch.from_numpy(np.array(tinted(rng, 69, 89))).permute(2, 0, 1) for _ in range(60)])
    pairs = sampler(images, torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = model.embed(pairs.patches)
    trained = [*model.neck.parameters(), *model.head.parameters()]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    model.neck.train()
    for step in range(200):
        some = torch.randint(len(pairs), (256,), generator=torch.Generator().manual_seed(step))
        logits = model.head(model.neck(vectors, vectors, pairs.neighbor[some], pairs.center[some]))
        optimizer.zero_grad()
        pretext_loss(logits, pairs.position[some]).backward()
        optimizer.step()
    # The neck's batch norm is slow (momentum .003): give it the statistics it would arrive at.
    model.neck.bn.momentum = None
    model.neck.bn.reset_running_stats()
    with torch.no_grad():
        model.neck(vectors, vectors, pairs.neighbor, pairs.center)
    return model.eval()


def audited(model: ContextPredictionModel | str, images: object, out: Path, **options: object) -> audit.AuditResult:
    return audit.run(model, images, out=out, device="cpu", progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def caught(cheat: ContextPredictionModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> audit.AuditResult:
    return audited(cheat, folder, tmp_path_factory.mktemp("out"))


class TestCheat:
    def test_accuracy_dies_without_colour(self, caught: audit.AuditResult) -> None:
        by_name = {treatment.name: treatment for treatment in caught.treatments}
        assert by_name["color"].result.accuracy > 0.5
        gray = by_name["gray"]
        assert gray.result.accuracy < 0.2
        assert gray.change_high < -0.2
        assert gray.lost > 0.8

    def test_features_tell_the_place(self, caught: audit.AuditResult) -> None:
        by_name = {places.name: places for places in caught.places}
        color, gray = by_name["color"], by_name["gray"]
        assert color.both.chance == pytest.approx(0.408, abs=0.02)
        assert color.x.chance == pytest.approx(0.289, abs=0.02)
        assert color.both.rmse < 0.15
        assert color.x.low > 0.4
        assert gray.both.rmse > 0.38
        assert abs(gray.x.below) < 0.1
        # Red against green is what the projection takes; blue stays.
        assert by_name["projected"].both.rmse > color.both.rmse
        assert color.best < color.both.rmse < color.chance_best

    def test_the_signs_are_named(self, caught: audit.AuditResult) -> None:
        signs = {finding.question: finding.sign for finding in caught.findings}
        assert signs["task"] is False
        assert signs["color"]
        assert signs["places"]
        assert not signs["gap"]
        assert "! Colour removed" in str(caught)
        assert "of cheating" in str(caught).splitlines()[0]

    def test_the_files_say_the_same(self, caught: audit.AuditResult) -> None:
        record = json.loads(caught.json.read_text())
        assert record == json.loads(json.dumps(caught.to_dict(), allow_nan=False))
        assert {"color", "places"} <= set(record["signs"])
        assert record["images"] == record["of"] == 20
        with Image.open(caught.picture) as picture:
            assert picture.format == "PNG"
            assert len(set(np.array(picture).reshape(-1, 3)[:, 0].tolist())) > 50  # patches, not bars alone

    def test_the_same_call_gives_the_same_figures(
        self, caught: audit.AuditResult, cheat: ContextPredictionModel, folder: Path, tmp_path: Path
    ) -> None:
        cheat.neck.train()
        before = {key: value.clone() for key, value in cheat.state_dict().items()}
        again = audited(cheat, folder, tmp_path)
        assert cheat.neck.training
        assert all(torch.equal(value, before[key]) for key, value in cheat.state_dict().items())
        cheat.eval()
        assert again.to_dict() == caught.to_dict()

    def test_as_trained_is_the_samplers_accuracy(
        self, caught: audit.AuditResult, cheat: ContextPredictionModel, folder: Path
    ) -> None:
        """The same photographs at the same size, other draws: within the two intervals."""
        first = caught.treatments[0].result
        images = []
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image:
                small = image.resize((89, 69), Image.Resampling.BILINEAR)
            images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))

        class Batch:
            pass

        batch = Batch()
        batch.images = torch.stack(images)  # type: ignore[attr-defined]
        batch.draw = cheat.patch_sampler.draw([(69, 89)] * 20, torch.Generator().manual_seed(5))  # type: ignore[attr-defined]
        other = measure(cheat, [batch], cheat.patch_sampler)  # type: ignore[list-item]
        assert other.low < first.high
        assert first.low < other.high


class TestHonest:
    def test_a_random_network_is_at_chance_and_accused_of_nothing(self, photos: Path, tmp_path: Path) -> None:
        result = audited(honest(), sorted(photos.glob("*.jpg"))[:12], tmp_path)
        trained = result.treatments[0].result
        assert trained.low <= 0.125 <= trained.high
        assert [finding.sign for finding in result.findings if finding.question in ("task", "two_images")] == [None] * 2
        assert not any(finding.sign for finding in result.findings if finding.question in ("color", "borders", "gap"))
        assert "does not solve" in str(result)

    def test_damaged_files_are_listed(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no image")
        cut = tmp_path / "cut.jpg"
        cut.write_bytes((photos / "koala.jpg").read_bytes()[:3000])
        files = [cut, *sorted(photos.glob("*.jpg"))[:11], tmp_path / "notes.txt", tmp_path / "absent.jpg"]
        result = audited(honest(), files, tmp_path / "out", at_most=14)
        assert (result.images, result.of) == (11, 14)
        assert sorted(Path(name).name for name in result.skipped) == ["absent.jpg", "cut.jpg", "notes.txt"]
        assert "3 skipped" in str(result)
        with pytest.raises(ImageError, match="Only 8 photographs"):
            audited(honest(), files[:9] + files[-2:], tmp_path / "out")

    def test_at_most_chooses_by_the_seed(self, photos: Path) -> None:
        from context_pred.data.collection import collect

        found = collect(sorted(photos.glob("*.jpg")))
        first, again, other = (list(audit._chosen(found, 12, seed).names) for seed in (0, 0, 1))
        assert first == again != other
        assert len(set(first)) == 12


class TestGreyPhotographs:
    @pytest.fixture(scope="class")
    @classmethod
    def grey(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Twelve noisy pictures without colour."""
        path, rng = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
        for k in range(12):
            tinted(rng).convert("L").save(path / f"{k}.png")
        return path

    def test_what_colour_does_cannot_be_told(self, cheat: ContextPredictionModel, grey: Path, tmp_path: Path) -> None:
        result = audited(cheat, grey, tmp_path)
        (color,) = (finding for finding in result.findings if finding.question == "color")
        assert color.sign is None
        assert color.text == ("Colour removed: these photographs are grey: cannot tell. Give photographs in colour.")
        assert result.gray == json.loads(result.json.read_text())["gray"] == 12
        assert [places.name for places in result.places] == ["color"]
        assert "projected" not in str(result)
        assert "in colour" not in result.findings[-1].text

    def test_some_grey_ones_are_told_of(self, folder: Path, grey: Path, tmp_path: Path) -> None:
        result = audited(honest(), [*sorted(folder.iterdir())[:9], *sorted(grey.iterdir())[:3]], tmp_path)
        assert (result.images, result.gray) == (12, 3)
        assert "25% of the photographs are grey to begin with" in str(result)
        assert {places.name for places in result.places} == {"color", "projected", "gray"}

    def test_compression_and_a_few_pixels_make_no_colour(self) -> None:
        image = torch.randint(0, 250, (1, 60, 80), dtype=torch.uint8).expand(3, -1, -1).clone()
        image[1] += 5
        assert audit_pairs.is_gray(image)
        image[0, 0, :4] = 255 - image[1, 0, :4] // 2
        image[0, 20:30, 20:30] = 255  # a red spot, 2 % of the picture
        assert not audit_pairs.is_gray(image)


class TestRefusals:
    def test_a_backbone_alone(self, folder: Path, tmp_path: Path) -> None:
        model = ContextPredictionModel("resnet18", pair_layers=False)
        with pytest.raises(InvalidInputError, match="backbone alone"):
            audited(model, folder, tmp_path)

    def test_too_few_photographs(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="at least 10"):
            audited(honest(), sorted(folder.iterdir())[:9], tmp_path)

    def test_strange_channels(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="4 channels"):
            audited(ContextPredictionModel("resnet18", in_channels=4, neck_channels=8), folder, tmp_path)

    @pytest.mark.parametrize("options", [{"size": 0}, {"at_most": 5}, {"seed": -1}, {"seed": 0.5}])
    def test_numbers_out_of_range(self, folder: Path, tmp_path: Path, options: dict[str, object]) -> None:
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            audited(honest(), folder, tmp_path, **options)

    def test_photographs_too_small_for_the_patches(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"size=59 px .* from 60 px up"):
            audited(honest(), folder, tmp_path, size=59)
        card = Card("pairs", "resnet18", neck_channels=8, patch_sampler={"type": "RandomPairSampler"})
        with pytest.raises(InvalidInputError, match=r"size=247 px .* from 248 px up"):
            audited(ContextPredictionModel.from_card(card), folder, tmp_path, size=247)

    def test_the_command_says_it_in_one_line(self, folder: Path, tmp_path: Path) -> None:
        ContextPredictionModel("resnet18", pair_layers=False).save_pretrained(tmp_path / "model")
        command = ["audit", str(tmp_path / "model"), str(folder), "--out", str(tmp_path / "out"), "--no-progress"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2
        assert "backbone alone" in result.output


def test_the_command_audits_a_saved_model(cheat: ContextPredictionModel, folder: Path, tmp_path: Path) -> None:
    cheat.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["audit", str(tmp_path / "model"), str(folder), "--out", str(out), "--at-most", "10", "--no-progress"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "cheat on 10 photographs" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "audit.png"]


class TestTreatments:
    patches = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1

    def test_blanked_borders(self) -> None:
        blank = audit_pairs.blank_borders(self.patches)
        assert torch.equal(blank[..., 4:28, 4:28], self.patches[..., 4:28, 4:28])
        assert int((blank == 0).sum()) == 4 * 3 * (32 * 32 - 24 * 24)

    def test_blanked_middle_has_as_many_pixels(self) -> None:
        blank = audit_pairs.blank_middle(self.patches)
        count = int((blank == 0).sum()) / (4 * 3)
        assert count == pytest.approx(32 * 32 - 24 * 24, rel=0.02)
        assert torch.equal(blank[..., :5, :], self.patches[..., :5, :])
        assert torch.equal(blank[..., -5:], self.patches[..., -5:])

    def test_inner_patch_is_enlarged(self) -> None:
        y = torch.arange(32.0).reshape(1, 1, 32, 1).expand(1, 3, 32, 32)
        inner = audit_pairs.only_inner(y)
        assert inner.shape == y.shape
        assert inner[0, 0, 0, 0] == 4
        assert inner[0, 0, 16, 5] == pytest.approx(15.875)
        assert inner[0, 0, -1, 0] == 27

    @pytest.mark.parametrize("sizes", [[(80, 90)] * 3, [(80, 90)], [(70, 200), (71, 71)]])
    def test_centers_come_from_another_image_of_the_same_position(self, sizes: Sequence[tuple[int, int]]) -> None:
        for sampler in (GridPatchSampler(60, 16), RandomPairSampler(patch=16, gap=8, jitter=1)):
            draw = sampler.draw(sizes, torch.Generator().manual_seed(0))
            pairs = PatchPairs(
                torch.empty(len(draw.boxes)), draw.neighbor, draw.center, draw.position, draw.boxes, draw.image
            )
            mixed = audit_pairs.from_two_images(pairs)
            assert (pairs.image[mixed.neighbor] != pairs.image[mixed.center]).all()
            if len(sizes) > 1:
                assert len(mixed) >= len(pairs) // 4
            asked = set(zip(pairs.neighbor.tolist(), pairs.position.tolist(), strict=True))
            assert set(zip(mixed.neighbor.tolist(), mixed.position.tolist(), strict=True)) <= asked
            centers = set(zip(pairs.center.tolist(), pairs.position.tolist(), strict=True))
            assert set(zip(mixed.center.tolist(), mixed.position.tolist(), strict=True)) <= centers

    def test_change_is_paired_by_image(self) -> None:
        rng = np.random.default_rng(0)
        m = rng.integers(5, 40, 50)
        h = rng.binomial(m, 0.4)
        one = {k: (float(a), float(b)) for k, (a, b) in enumerate(zip(h, m, strict=True))}
        assert audit_pairs.half_width(one, one) == 0
        h2 = rng.binomial(m, 0.3)
        other = {k: (float(a), float(b)) for k, (a, b) in enumerate(zip(h2, m, strict=True))}
        r, s = ((a - a.sum() / m.sum() * m) / m.sum() for a in (h, h2))
        expected = 2.0096 * np.sqrt(50 / 49 * ((r - s) ** 2).sum())
        assert audit_pairs.half_width(one, other) == pytest.approx(expected, rel=1e-3)


class TestGeometries:
    @pytest.mark.parametrize(
        "config",
        [
            SAMPLER,
            {"type": "GridPatchSampler", "preset": "openmmlab-1.x"},
            {"type": "GridPatchSampler", "crop": 141, "patch": 32, "gap": [0, 16]},
            {"type": "RandomPairSampler"},
        ],
    )
    def test_gaps_differ_in_nothing_else(self, config: dict[str, object]) -> None:
        sampler = sampler_from_config(config)
        none, half, whole = audit_pairs.wider_gaps(sampler, None)
        sizes = {geometry.size(300, 400, torch.Generator().manual_seed(1)) for geometry in (none, half, whole)}
        assert len(sizes) == 1
        distances = []
        for geometry in (none, half, whole):
            draw = geometry.sampler.draw([sizes.copy().pop()] * 400, torch.Generator().manual_seed(0))
            right = torch.tensor(OFFSETS)[draw.position, 1]
            apart = (draw.boxes[draw.neighbor] - draw.boxes[draw.center])[:, :2].double()
            distances.append(float((apart[:, 0] * right)[right != 0].mean()))
        patch = sampler.patch
        assert distances[1] - distances[0] == pytest.approx(patch / 2, abs=0.06 * patch)
        assert distances[2] - distances[0] == pytest.approx(patch, abs=0.06 * patch)

    def test_the_papers_geometry_is_scaled_to_the_patch(self) -> None:
        paper = audit_pairs.papers(GridPatchSampler(135, 32))
        assert (paper.sampler.patch, paper.sampler.gap, paper.sampler.jitter) == (32, 16, 2)
        areas = [np.prod(paper.size(300, 400, torch.Generator().manual_seed(k))) for k in range(200)]
        assert min(areas) == pytest.approx(150_000 / 9, rel=0.1)
        assert max(areas) == pytest.approx(450_000 / 9, rel=0.1)
        full = audit_pairs.papers(GridPatchSampler(288, 96)).sampler
        assert (full.gap, full.jitter) == (48, 7)
        assert audit_pairs.papers(RandomPairSampler()) is None

    def test_a_panorama_counts_no_more_than_another_photograph(self) -> None:
        paper = audit_pairs.papers(GridPatchSampler(60, 16))
        opened = [Image.new("RGB", size) for size in [(6000, 150), (481, 321)]]
        photos = audit_pairs.Photos([0, 1], opened, seed=0, channels=3, device=CPU)
        images = photos.scaled(paper.size)
        pairs = photos.cut(paper.sampler, images, photos.draws(paper.sampler, images))
        image = pairs.image[pairs.neighbor]
        assert torch.equal(image, pairs.image[pairs.center])
        assert int((image == 0).sum()) == 256
        plain = paper.sampler.draw([tuple(images[1].shape[1:])], photos.generator(audit_pairs.BOXES, 1))
        assert int((image == 1).sum()) == len(plain.position) < 256  # nothing is left out of the other one
        # They come from all over it, each patch that is cut is asked about, and lies where its position says.
        assert pairs.boxes[pairs.image == 0, 0].max() > 0.8 * images[0].shape[2]
        assert set(range(int((pairs.image == 0).sum()))) <= {*pairs.neighbor.tolist(), *pairs.center.tolist()}
        apart = (pairs.boxes[pairs.neighbor] - pairs.boxes[pairs.center])[:, [1, 0]]
        near = (apart - torch.tensor(OFFSETS)[pairs.position] * 24).abs()
        assert near[image == 0].max() <= 16

    @pytest.mark.parametrize("size", [(20, 30), (40, 4000), (300, 400)])
    def test_every_photograph_is_large_enough(self, size: tuple[int, int]) -> None:
        for sampler in (GridPatchSampler(60, 16), RandomPairSampler(patch=16, gap=8, jitter=1)):
            for geometry in (audit_pairs.as_trained(sampler, None), *audit_pairs.wider_gaps(sampler, None)):
                scaled = geometry.size(*size, torch.Generator().manual_seed(0))
                geometry.sampler.draw([scaled], torch.Generator().manual_seed(0))
        assert audit_pairs.as_trained(GridPatchSampler(), None).size(400, 500, torch.Generator()) == (292, 365)
        assert audit_pairs.as_trained(GridPatchSampler(), 400).size(300, 300, torch.Generator()) == (400, 400)


def some_photos(photos: Path, count: int, channels: int = 3) -> audit_pairs.Photos:
    opened = []
    for path in sorted(photos.glob("*.jpg"))[:count]:
        with Image.open(path) as image:
            opened.append(image.convert("RGB"))
    return audit_pairs.Photos(range(count), opened, seed=0, channels=channels, device=CPU)


@pytest.mark.parametrize(
    ("backbone", "channels", "sampler"),
    [
        ("resnet18", 3, {**SAMPLER, "preset": "openmmlab-1.x", "pairs": "center"}),
        ("resnet18", 3, {**SAMPLER, "channel_order": "bgr", "grayscale": 0.0}),
        ("resnet18", 1, {**SAMPLER, "mean": [0.5], "std": [0.25]}),
        ("contextnet", 3, {"type": "RandomPairSampler", "count": 1}),
        ("resnet18", 3, {"type": "RandomPairSampler", "preset": "paper", "projection": True, "count": 2, "patch": 32}),
    ],
)
def test_every_kind_of_model(photos: Path, backbone: str, channels: int, sampler: dict[str, object]) -> None:
    card = Card("tiny", backbone, in_channels=channels, neck_channels=16, patch_sampler=sampler)
    model = ContextPredictionModel.from_card(card)
    pairs = audit_pairs.PairAudit(model, model.patch_sampler, None)
    places = audit_places.PlaceAudit(model, pairs.own)
    some = some_photos(photos, 2, channels)
    pairs.add(some)
    places.add(some)
    names = {treatment.name for treatment in pairs.results()}
    assert {"as_trained", "borders", "middle", "inner", "gap_none", "gap_half", "gap_whole"} <= names
    assert ("paper" in names) == (sampler["type"] == "GridPatchSampler")
    assert ("gray" in names) == (channels == 3)
    assert ("color" in names) == (channels == 3 and sampler.get("grayscale", 0) > 0)
    assert set(places.features) == ({"color", "projected", "gray"} if channels == 3 else {"color"})


def test_below_chance_is_no_double_negative() -> None:
    worse = audit_places.Distance(rmse=0.42, chance=0.408, below=-0.021, low=-0.03, high=-0.01)
    better = audit_places.Distance(rmse=0.40, chance=0.408, below=0.021, low=0.01, high=0.03)
    assert below_chance(worse) == "no better than chance"
    assert below_chance(better) == "2.1% below chance"
    places = audit_places.Places("color", "in colour", worse, worse, better, 0.2, 0.3, 20, 320)
    text = _places({"color": places}).text
    assert "0.420 (no better than chance; left to right no better than chance)" in text
    assert "-" not in text


class TestPlaces:
    def test_boxes_lie_where_the_places_say(self, photos: Path) -> None:
        geometry = audit_pairs.as_trained(GridPatchSampler(60, 16), None)
        place_audit = audit_places.PlaceAudit(honest(), geometry)
        image = torch.zeros(3, 69, 90)
        draw, place = place_audit._draw(image, torch.Generator().manual_seed(0))
        assert cut_boxes(image[None], draw.boxes, draw.image).shape == (16, 3, 16, 16)
        torch.testing.assert_close(place * torch.tensor([74.0, 53.0]).double(), draw.boxes[:, :2].double())
        many = torch.cat([place_audit._draw(image, torch.Generator().manual_seed(k))[1] for k in range(100)])
        assert many.min() == 0
        assert many.max() == 1
        assert many.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)

    @staticmethod
    def fitted(features: Tensor, places: Tensor) -> tuple[float, float]:
        predicted, mean = audit_places.cross_fitted(features, places, torch.arange(len(places)) % 5)
        return tuple(float((each - places).square().sum(-1).mean().sqrt()) for each in (predicted, mean))

    def test_what_is_in_the_features_is_found_and_nothing_else(self) -> None:
        g = torch.Generator().manual_seed(0)
        places = torch.rand(60, 16, 2, generator=g, dtype=torch.float64)
        noise = torch.randn(60, 16, 40, generator=g, dtype=torch.float64)
        rmse, chance = self.fitted(noise, places)
        assert chance == pytest.approx(0.408, abs=0.01)
        assert rmse == pytest.approx(chance, rel=0.03)
        hidden = noise * 1000 + 5
        hidden[..., :2] += places @ torch.tensor([[3e4, 0.0], [1e4, -2e4]]).double()
        rmse, chance = self.fitted(hidden, places)
        assert rmse < 0.2 * chance
        constant = torch.cat([hidden, torch.full((60, 16, 1), 7.0)], -1)  # a dead feature changes nothing
        assert self.fitted(constant, places)[0] == pytest.approx(rmse, rel=1e-6)

    def test_images_are_not_remembered(self) -> None:
        """Features that name the image say nothing of images that were not fitted."""
        g = torch.Generator().manual_seed(0)
        places = torch.rand(20, 1, 2, generator=g, dtype=torch.float64).expand(20, 16, 2)
        rmse, chance = self.fitted(torch.eye(20).double()[:, None].expand(20, 16, 20), places)
        assert rmse >= 0.99 * chance
