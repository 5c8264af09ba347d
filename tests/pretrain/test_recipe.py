"""Recipes: what the files say, what they are checked for, and what becomes of them in a run's folder."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from pathlib import Path

import pytest
import torch

from context_pred import list_models, model_info
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler, RandomPairSampler, sampler_from_config
from context_pred.patches.random_pairs import draw_size
from context_pred.pretrain import recipe as recipes
from context_pred.pretrain.recipe import Recipe, list_recipes, read_recipe
from context_pred.training import keys

PUBLISHED = ("resnet50_8xb64-steplr-70e", "resnet50_8xb64-steplr-70e-1x")
SMALL = """
[model]
backbone = "resnet18"
dropout = 0.0

[images]
mode = "squares"
squares = [0.5, 1.0]
flip = 0.5

[sampler]
type = "GridPatchSampler"
preset = "openmmlab-0.x"
crop = 135
patch = 32
gap = [0, 16]
grayscale = 0.66
pairs = "adjacent"

[batch]
images = 64
per_device = 64

[optimizer]
kind = "adamw"
learning_rate = 1e-3
weight_decay = 0.05
decay_norms_and_biases = false

[schedule]
images = 300000
decay = "cosine"
warmup_images = 6400
warmup_start = 0.01

[run]
precision = "bfloat16"
channels_last = true
held_out = 0.1
"""


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def changed(folder: Path, old: str, new: str) -> Path:
    """The small recipe with one line replaced."""
    assert SMALL.count(old) == 1, old
    return written(folder, SMALL.replace(old, new))


@pytest.fixture
def mine(tmp_path: Path) -> Recipe:
    return read_recipe(written(tmp_path, SMALL))


# The recipes of the library ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_recipes())
class TestEveryRecipe:
    def test_it_is_read_and_named_after_its_file(self, name: str) -> None:
        recipe = read_recipe(name)
        assert recipe.name == name
        assert recipe.title

    def test_its_comment_says_command_hardware_and_what_is_known(self, name: str) -> None:
        text = (Path(recipes.__file__).parent / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        comment = " ".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())).replace("# ", "")
        assert f"--recipe {name} --out" in comment
        assert "Hardware:" in comment
        assert "has not been run" in comment or "held-out photographs" in comment

    def test_written_whole_it_reads_back_equal(self, name: str, tmp_path: Path) -> None:
        recipe = read_recipe(name)
        text = recipe.to_toml()
        again = read_recipe(written(tmp_path, text, "recipe.toml"))
        assert again == recipe
        assert again.to_toml() == text

    def test_every_option_is_written_with_its_value(self, name: str) -> None:
        recipe = read_recipe(name)
        text = recipe.to_toml()
        document = tomllib.loads(text)
        assert list(document) == ["name", "title", *recipes._TABLES]
        for table in ("model", "images", "batch", "optimizer", "schedule", "run"):
            for field in dataclasses.fields(getattr(recipe, table)):
                value = getattr(getattr(recipe, table), field.name)
                if value is None:
                    assert f"\n# {field.name} is not set: " in text
                else:
                    assert document[table][field.name] == (list(value) if isinstance(value, tuple) else value)
        assert sampler_from_config(document["sampler"]).to_config() == recipe.make_sampler().to_config()
        assert {"type", "preset", "patch", "gap", "grayscale", "normalize", "mean"} <= document["sampler"].keys()

    def test_its_network_takes_its_patches(self, name: str) -> None:
        options, patch = read_recipe(name).model, read_recipe(name).sampler["patch"]
        with torch.device("meta"):
            model = ContextPredictionModel(options.backbone, in_channels=options.in_channels).eval()
            patches = torch.empty(5, options.in_channels, patch, patch)
            assert model(patches, patches).shape == (5, 8)


def test_every_published_model_names_a_recipe_with_its_own_sampler() -> None:
    seen = set()
    for name in list_models():
        card = model_info(name)
        if card.url is None:
            continue
        recipe = read_recipe(card.recipe.split(" (")[0])
        ours, theirs = (
            {key: value for key, value in sampler.to_config().items() if key != "channel_order"}
            for sampler in (recipe.make_sampler(), sampler_from_config(card.patch_sampler))
        )
        assert ours == theirs, name
        assert (recipe.model.backbone, recipe.model.in_channels) == (card.backbone, card.in_channels)
        assert recipe.sampler["mean"] == list(card.mean)
        assert recipe.sampler["std"] == list(card.std)
        as_bgr = recipe.override({"sampler.channel_order": card.channel_order})
        assert as_bgr.make_sampler().channel_order == card.channel_order
        seen.add(recipe.name)
    assert seen == set(PUBLISHED)


def test_the_published_recipes_are_upstreams() -> None:
    """mmselfsup's relative-loc_resnet50_8xb64-steplr-70e_in1k, 0.x and 1.x."""
    for name in PUBLISHED:
        recipe = read_recipe(name)
        assert dataclasses.astuple(recipe.model) == ("resnet50", 3, None, 0.5, "openmmlab")
        assert (recipe.batch.images, recipe.batch.per_device) == (512, 64)
        optimizer = recipe.optimizer
        assert (optimizer.kind, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.2, 0.9)
        assert (optimizer.weight_decay, optimizer.pair_layers_weight_decay) == (1e-4, 5e-4)
        assert (optimizer.decay_norms_and_biases, optimizer.reduction) == (True, "mean")
        schedule = recipe.schedule
        assert (schedule.epochs, schedule.decay, schedule.milestones, schedule.factor) == (70, "steps", (30, 50), 0.1)
        assert (schedule.warmup_epochs, schedule.warmup_start) == (5.0, 0.1)
        assert (recipe.images.mode, recipe.images.resize, recipe.images.flip) == ("resize", 292, 0.0)
        sampler = recipe.make_sampler()
        assert isinstance(sampler, GridPatchSampler)
        assert (sampler.crop, sampler.patch, sampler.grayscale, sampler.pairs) == (255, 64, 0.66, "center")
        assert (recipe.run.precision, recipe.run.sync_batch_norm, recipe.run.held_out) == ("float32", False, 0.0)
        assert recipe.make_schedule(2503).steps == 175_210
    old, new = map(read_recipe, PUBLISHED)
    assert (old.images.keep_ratio, old.images.antialias, old.schedule.warmup_ends) == (True, True, "after")
    assert (new.images.keep_ratio, new.images.antialias, new.schedule.warmup_ends) == (False, False, "at")
    assert (old.sampler["preset"], new.sampler["preset"]) == ("openmmlab-0.x", "openmmlab-1.x")
    assert new.sampler["mean"] == [124 / 255, 117 / 255, 104 / 255]
    assert new.sampler["std"] == [59 / 255, 58 / 255, 58 / 255]


def test_the_authors_recipe_is_the_released_codes() -> None:
    recipe = read_recipe("deepcontext")
    assert (recipe.model.backbone, recipe.model.initialization) == ("contextnet", "caffe")
    optimizer = recipe.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.momentum) == ("sgd", 1e-5, 0.0)
    assert (optimizer.weight_decay, optimizer.pair_layers_weight_decay, optimizer.reduction) == (0.0, None, "sum")
    assert (recipe.images.mode, recipe.images.pixels) == ("pixels", (150_000, 450_000))
    assert recipe.schedule.decay == "constant"
    schedule = recipe.make_schedule(1)
    assert schedule.steps == 1_000_000
    assert schedule.rate(0) == schedule.rate(999_999) == 1e-5


def test_a_step_of_the_authors_recipe_holds_about_512_patches() -> None:
    """Drawn from the sizes most usual in ImageNet; the figures are those of the file's comment."""
    recipe = read_recipe("deepcontext")
    sampler, generator = recipe.make_sampler(), keys.generator(0)
    assert isinstance(sampler, RandomPairSampler)
    sizes = [(375, 500), (500, 375), (333, 500), (500, 500), (500, 333)] * 100
    draw = sampler.draw([draw_size(*size, generator) for size in sizes], generator)
    steps = len(sizes) / recipe.batch.images
    assert len(draw.boxes) / steps == pytest.approx(516, rel=0.03)
    assert len(draw.position) / steps == pytest.approx(2370, rel=0.03)


def test_the_small_recipes_are_of_their_time() -> None:
    for name in set(list_recipes()) - {*PUBLISHED, "deepcontext"}:
        recipe = read_recipe(name)
        assert recipe.batch.images == recipe.batch.per_device
        assert (recipe.sampler["pairs"], recipe.run.precision) == ("adjacent", "bfloat16")
        assert (recipe.optimizer.decay_norms_and_biases, recipe.schedule.decay) == (False, "cosine")
        assert recipe.make_schedule(100).remarks() == ()


# Reading ------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'deepcontext'") as caught:
        read_recipe("depcontext")
    assert "./depcontext.toml" in str(caught.value)
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18_1xb64-coslr-300k'"):
        read_recipe("resnet18")
    with pytest.raises(InvalidInputError, match=r"no recipe at runs.mine\.toml\. A name takes one of the library's"):
        read_recipe(Path("runs") / "mine.toml")


def test_a_runs_folder_is_a_recipe_too(tmp_path: Path) -> None:
    recipe = read_recipe("deepcontext").override({"run.seed": "7"})
    written(tmp_path, recipe.to_toml(), "recipe.toml")
    assert read_recipe(tmp_path) == recipe
    assert read_recipe(str(tmp_path)).name == "deepcontext"


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    recipe = read_recipe(changed(tmp_path, "flip = 0.5", "flip = 0.25"))
    assert (recipe.name, recipe.images.flip) == ("mine", 0.25)


def test_a_title_may_hold_any_character(mine: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(mine, title='Grün "x" \\ \t\n\x7f 猫')
    assert read_recipe(written(tmp_path, recipe.to_toml())).title == recipe.title


def test_other_channels_fit_the_presets_mean_and_std(mine: Recipe) -> None:
    grey = mine.override({"model.in_channels": "1"})
    assert grey.sampler["mean"] == pytest.approx([0.449])
    assert grey.sampler["std"] == pytest.approx([0.226])
    assert grey.override({"model.in_channels": "3"}) == mine
    assert len(mine.override({"model.in_channels": "5"}).sampler["mean"]) == 5
    own = mine.override({"model.in_channels": "2", "sampler.mean": "[.5, 0.4]", "sampler.std": "[0.2, 0.1]"})
    assert own.sampler["mean"] == [0.5, 0.4]
    with pytest.raises(InvalidInputError, match=r"mean and std have 2 values, but .* in_channels = 3"):
        own.override({"model.in_channels": "3"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # A wrong name: file, table, what was given, what is accepted, the nearest.
        ("[optimizer]", "[optimiser]", r"mine\.toml: Unknown table 'optimiser'\. Did you mean 'optimizer'\?"),
        ("learning_rate = 1e-3", "learning_rat = 1e-3", r"mine\.toml, \[optimizer\]: .*Did you mean 'learning_rate'"),
        ("flip = 0.5", "per_device = 3", r"\[images\]: Unknown option 'per_device'.*one of that name in \[batch\]"),
        ('kind = "adamw"', 'kind = "adam"', r"\[optimizer\] kind: Unknown choice 'adam'\. Did you mean 'adamw'"),
        ('"resnet18"', '"resnet19"', r"\[model\]: Unknown backbone 'resnet19'\. Did you mean 'resnet18'"),
        ("crop = 135", "corp = 135", r"\[sampler\]: Unknown option of GridPatchSampler 'corp'\. Did you mean 'crop'"),
        ('"GridPatchSampler"', '"GridSampler"', r"\[sampler\]: Unknown sampler 'GridSampler'\. Did you mean"),
        ('"openmmlab-0.x"', '"openmmlab-2.x"', r"\[sampler\]: Unknown preset 'openmmlab-2\.x'"),
        ('mode = "squares"', 'mode = "square"', r"\[images\]: .*'square'.*Did you mean 'squares'"),
        # A wrong type: strictly, no truth value for a number.
        (
            "learning_rate = 1e-3",
            'learning_rate = "1e-3"',
            r'learning_rate is "1e-3" \(a string\); accepted is a number',
        ),
        ("learning_rate = 1e-3", "learning_rate = true", r"learning_rate is true \(a truth value\); .* a number"),
        ("learning_rate = 1e-3", "learning_rate = nan", r"learning_rate is nan .*accepted is a number"),
        ("images = 64\n", "images = 64.0\n", r"\[batch\] images is 64\.0 \(a number\); accepted is a whole number"),
        ("images = 64\n", "images = true\n", r"\[batch\] images is true"),
        ("channels_last = true", "channels_last = 1", r"channels_last is 1 .*accepted is true or false"),
        ("crop = 135", "crop = true", r"\[sampler\] crop is true"),
        ("crop = 135", 'crop = "135"', r"\[sampler\] crop is \"135\""),
        ("gap = [0, 16]", "gap = 16", r"\[sampler\] gap is 16 .*accepted is a list"),
        ("gap = [0, 16]", "gap = [0, 1.5]", r"\[sampler\] gap is 1\.5"),
        ("squares = [0.5, 1.0]", "squares = [0.5]", r"\[images\] squares is \[0\.5\].*accepted are 2 values"),
        ("decay_norms_and_biases = false", "decay_norms_and_biases = []", r"is \[\] \(a list\)"),
        ('kind = "adamw"', "kind = 3", r"kind is 3 \(a whole number\); accepted: 'sgd', 'adamw'"),
        # Out of its range.
        ("dropout = 0.0", "dropout = 1.0", r"\[model\]: dropout = 1\.0"),
        ("held_out = 0.1", "held_out = 1.0", r"\[run\]: held_out = 1\.0"),
        ("held_out = 0.1", "keep = 0", r"\[run\]: keep = 0"),
        ("flip = 0.5", "flip = 2.0", r"\[images\]: flip"),
        ("images = 64\n", "images = 100\n", r"\[batch\]: images = 100 is no multiple.*near are 64 and 128"),
        ("grayscale = 0.66", "grayscale = 66.0", r"\[sampler\]: grayscale=66\.0 is no probability"),
        # Missing.
        ('kind = "adamw"', "", r"mine\.toml, \[optimizer\] lacks kind"),
        ('type = "GridPatchSampler"', "", r"\[sampler\] lacks type"),
        ("images = 300000", "", r"\[schedule\]: epochs = None and images = None: exactly one"),
        # Contradictions.
        ("images = 300000", "images = 300000\nepochs = 3", r"\[schedule\]: .*exactly one"),
        ("patch = 32", "patch = 46", r"mine\.toml: \[sampler\]: .*46"),
        ("dropout = 0.0", 'initialization = "caffe"', r'initialization = "caffe" with backbone = "resnet18"'),
        ("dropout = 0.0", "in_channels = 1\n[images]", "Cannot declare"),
        ('mode = "squares"', "resize = 100", r"\[images\] resize = 100, but the sampler's crop is 135 px"),
        ('mode = "squares"', 'mode = "pixels"\npixels = [100, 200]', r"accepted is 18225 or more"),
        ("grayscale = 0.66", "normalize = false", r"normalize = false"),
        ('pairs = "adjacent"', 'channel_order = "rbg"', r"\[sampler\]: Unknown channel order 'rbg'"),
        ("[batch]", "[batch", r"mine\.toml is no TOML file"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_cure(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        read_recipe(changed(tmp_path, old, new))
    assert "mine.toml" in str(caught.value)


def test_a_table_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"lacks \[model\], \[sampler\], \[batch\], \[optimizer\], \[schedule\]"
    ):
        read_recipe(written(tmp_path, "title = 'x'"))
    with pytest.raises(InvalidInputError, match=r"\[model\] is 3 \(a whole number\); accepted is a table"):
        read_recipe(written(tmp_path, "model = 3\n[sampler]\n[batch]\n[optimizer]\n[schedule]\n"))
    with pytest.raises(InvalidInputError, match=r"title is 3"):
        read_recipe(written(tmp_path, "title = 3"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="is no TOML file"):
        read_recipe(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.in_channels": "1"}, "RandomPairSampler takes RGB"),
        ({"sampler.patch": "64"}, r"patch = 64, but backbone = \"contextnet\" needs 93 px"),
        ({"images.mode": "squares"}, "which RandomPairSampler has not"),
        ({"images.mode": "resize", "images.resize": "247"}, "needs more than 247 px a side; accepted is 248 or more"),
        ({"images.pixels": "[60000, 90000]"}, "accepted is 61504 or more"),
        ({"model.initialization": "openmmlab"}, r"accepted is \"caffe\""),
    ],
)
def test_what_the_authors_sampler_and_network_do_not_go_with(changes: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_recipe("deepcontext").override(changes)


# Changing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optimizer.learning_rate", ".1", 0.1),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.betas", "[0.9, 0.98]", (0.9, 0.98)),
        ("optimizer.reduction", "sum", "sum"),
        ("optimizer.pair_layers_weight_decay", " 1e-2 ", 1e-2),
        ("run.precision", '"float32"', "float32"),
        ("run.precision", "float32", "float32"),
        ("run.compile", "true", True),
        ("images.squares", "[.25, 1]", (0.25, 1.0)),
        ("run.seed", "1_000", 1000),
    ],
)
def test_a_value_is_read_as_toml_or_a_bare_word(mine: Recipe, path: str, text: str, value: object) -> None:
    table, key = path.split(".")
    before = mine.to_toml()
    assert getattr(getattr(mine.override({path: text}), table), key) == value
    assert mine.to_toml() == before


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("optimizer.lr", "1", r"with --set, \[optimizer\]: Unknown option 'lr'"),
        ("optimiser.learning_rate", "1", "Unknown section 'optimiser'. Did you mean 'optimizer'"),
        ("learning_rate", "1", r"Did you mean optimizer\.learning_rate\?"),
        ("lr", "1", r"accepted is SECTION\.KEY=VALUE\. Sections: model"),
        ("run.compile", "True", r'compile is "True" \(a string\); accepted is true or false'),
        ("run.seed", "1.5", r"seed is 1\.5"),
        ("run.seed", "1\nkeep = 1", "accepted is one TOML value"),
        ("run.precision", "'float32", "no TOML value"),
        ("images.squares", "[0.5, 1", "no TOML value"),
        ("images.squares", "0.5.1", r'squares is "0\.5\.1" \(a string\)'),
        ("sampler.corp", "135", "Did you mean 'crop'"),
        ("sampler.type", "RandomPairSampler", "which RandomPairSampler has not"),
        ("optimizer.kind", "", "lacks kind"),
        ("batch.images", "100", "no multiple of per_device = 64"),
        ("batch.images", "0", "accepted is 1 or more"),
        ("batch.images", "many", r'images is "many"'),
    ],
)
def test_a_wrong_change_is_refused(mine: Recipe, path: str, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        mine.override({path: text})


def test_one_length_takes_the_place_of_the_other(mine: Recipe) -> None:
    recipe = mine.override({"schedule.epochs": "3", "schedule.warmup_epochs": "0.5"})
    assert (recipe.schedule.epochs, recipe.schedule.images) == (3, None)
    assert (recipe.schedule.warmup_epochs, recipe.schedule.warmup_images) == (0.5, None)
    back = recipe.override({"schedule.images": "300000", "schedule.warmup_images": "6400"})
    assert back == mine
    with pytest.raises(InvalidInputError, match="exactly one"):
        recipe.override({"schedule.images": "5", "schedule.epochs": "5"})


def test_an_empty_text_unsets_an_option() -> None:
    recipe = read_recipe(PUBLISHED[0]).override({"optimizer.pair_layers_weight_decay": ""})
    assert recipe.optimizer.pair_layers_weight_decay is None
    assert "# pair_layers_weight_decay is not set" in recipe.to_toml()
    cosine = recipe.override({"schedule.decay": "cosine", "schedule.milestones": ""})
    assert cosine.schedule.milestones == ()


def test_another_preset_brings_its_own_mean_but_keeps_what_was_chosen(mine: Recipe) -> None:
    recipe = mine.override({"sampler.preset": "openmmlab-1.x", "sampler.gap": "[0, 0]"})
    expected = GridPatchSampler(135, 32, preset="openmmlab-1.x", pairs="adjacent")
    assert recipe.make_sampler().to_config() == expected.to_config()
    assert recipe.override({"sampler.preset": "openmmlab-0.x", "sampler.gap": "[0, 16]"}) == mine
    paper = read_recipe("deepcontext").override({"sampler.preset": "paper"}).make_sampler()
    assert paper.to_config() == RandomPairSampler("paper").to_config()


def test_another_sampler_begins_with_its_own_options(mine: Recipe) -> None:
    recipe = mine.override({"sampler.type": "RandomPairSampler", "images.mode": "pixels"})
    assert recipe.make_sampler().to_config() == RandomPairSampler().to_config()


# The batch -----------------------------------------------------------------------------------------------------------


def test_the_learning_rate_scales_with_the_batch_and_the_run_says_so() -> None:
    recipe = read_recipe(PUBLISHED[0])
    half = recipe.with_batch(256)
    assert half.optimizer.learning_rate == 0.1
    assert (half.batch.images, half.batch.per_device) == (256, 64)
    assert half.notes == (
        "256 images a step in place of 512: the learning rate is scaled in proportion, from 0.2 to 0.1.",
    )
    assert recipe.override({"batch.images": "256"}) == half
    assert recipe.override({"batch.images": "256"}).notes == half.notes
    assert recipe.with_batch(512) == recipe
    assert recipe.with_batch(512).notes == ()
    assert recipe.notes == ()


def test_a_learning_rate_given_with_the_batch_is_left_alone() -> None:
    recipe = read_recipe(PUBLISHED[0]).override({"batch.images": "256", "optimizer.learning_rate": "0.3"})
    assert (recipe.optimizer.learning_rate, recipe.notes) == (0.3, ())


def test_a_learning_rate_given_with_a_small_batch_makes_the_micro_batch_smaller_too(mine: Recipe) -> None:
    """As ``--batch-size 16 --set optimizer.learning_rate=…`` asks."""
    recipe = mine.override({"batch.images": "16", "optimizer.learning_rate": "0.3"})
    assert (recipe.batch.images, recipe.batch.per_device, recipe.optimizer.learning_rate) == (16, 16, 0.3)
    assert recipe.notes == ("Batch norms see 16 images in place of 64.",)
    given = {"batch.images": "16", "batch.per_device": "8", "optimizer.learning_rate": "0.3"}
    assert mine.override(given).batch.per_device == 8


def test_a_batch_below_the_micro_batch_makes_it_smaller(mine: Recipe) -> None:
    for recipe in (mine.with_batch(16), mine.override({"batch.images": "16"})):
        assert (recipe.batch.images, recipe.batch.per_device) == (16, 16)
        assert recipe.optimizer.learning_rate == 2.5e-4
        assert recipe.notes[1:] == ("Batch norms see 16 images in place of 64.",)


def test_a_summed_loss_keeps_its_learning_rate() -> None:
    recipe = read_recipe("deepcontext").with_batch(26)
    assert recipe.optimizer.learning_rate == 1e-5
    assert "stays 1e-05, since the loss is a sum" in recipe.notes[0]
    assert recipe.batch.per_device == 13


def test_another_micro_batch_alone_keeps_the_learning_rate() -> None:
    recipe = read_recipe(PUBLISHED[0]).override({"batch.per_device": "32"})
    assert (recipe.batch.images, recipe.batch.per_device, recipe.optimizer.learning_rate) == (512, 32, 0.2)
    with pytest.raises(InvalidInputError, match="no multiple"):
        read_recipe(PUBLISHED[0]).with_batch(100)


def test_a_recipe_is_frozen(mine: Recipe) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.name = "other"  # type: ignore[misc]


def test_the_wheel_carries_the_recipes(root: Path) -> None:
    included = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = included["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    assert "/context_pred/**/*.toml" in patterns
