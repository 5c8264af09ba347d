"""The game: what is asked, what the model answers, what counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.app.guess import Question, Score, ask, can_guess, cell_of
from context_pred.card import Card
from context_pred.errors import InvalidInputError
from context_pred.model import ContextPredictionModel
from context_pred.patches import POSITIONS


@pytest.fixture(scope="module")
def photograph(collection: Path) -> Image.Image:
    return Image.open(collection / "koala.png").convert("RGB")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def side(question: Question) -> str:
    """Name the position by where the boxes lie."""
    cx, cy = (np.add(question.center[:2], question.center[2:]) / 2).tolist()
    x, y = (np.add(question.neighbor[:2], question.neighbor[2:]) / 2).tolist()
    width = question.center[2] - question.center[0]
    vertical = "up" if y < cy - width / 2 else "down" if y > cy + width / 2 else ""
    horizontal = "left" if x < cx - width / 2 else "right" if x > cx + width / 2 else ""
    return "-".join(filter(None, (vertical, horizontal)))


def test_the_truth_is_where_the_boxes_lie_and_every_position_occurs(
    tiny: ContextPredictionModel, photograph: Image.Image
) -> None:
    questions = [ask(tiny, photograph, seeded(seed)) for seed in range(32)]
    assert all(POSITIONS[question.position] == side(question) for question in questions)
    assert set(Counter(question.position for question in questions)) == set(range(8))


def test_the_models_answer_is_that_of_the_patches_shown(tiny: ContextPredictionModel, photograph: Image.Image) -> None:
    """In colour, though this sampler turns all photographs grey: the person sees colours too."""
    question = ask(tiny, photograph, seeded(3))
    sampler = tiny.patch_sampler
    patches = np.stack([np.asarray(one) for one in (question.neighbor_patch, question.center_patch)])
    normal = (patches / 255 - np.array(sampler.mean)) / np.array(sampler.std)  # type: ignore[union-attr]
    neighbor, center = torch.from_numpy(normal).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = tiny(neighbor[None], center[None]).softmax(1)[0]
    assert question.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(question.probabilities) == pytest.approx(1)
    assert question.predicted == int(expected.argmax())
    assert np.ptp(patches, axis=-1).max() > 0  # no grey patch could tell colour from luma


def test_a_seed_repeats_a_question(tiny: ContextPredictionModel, photograph: Image.Image) -> None:
    first, again, other = (ask(tiny, photograph, seeded(seed)) for seed in (5, 5, 6))
    assert (first.center, first.neighbor, first.probabilities) == (again.center, again.neighbor, again.probabilities)
    assert (first.center, first.neighbor) != (other.center, other.neighbor)


@pytest.mark.parametrize("preset", ["deepcontext", "paper"])
def test_the_authors_sampler_asks_too(photograph: Image.Image, preset: str) -> None:
    torch.manual_seed(0)
    sampler = {"type": "RandomPairSampler", "preset": preset, "patch": 24, "gap": 12, "jitter": 2}
    model = ContextPredictionModel.from_card(Card("tiny", "resnet18", patch_sampler=sampler)).eval()
    question = ask(model, photograph, seeded(0))
    assert POSITIONS[question.position] == side(question)
    assert sum(question.probabilities) == pytest.approx(1)


def test_a_grey_model_asks_about_colour_photographs(photograph: Image.Image) -> None:
    card = Card("grey", "resnet18", patch_sampler={"type": "GridPatchSampler", "crop": 105, "patch": 32})
    model = ContextPredictionModel.from_card(card, in_channels=1).eval()
    question = ask(model, photograph, seeded(0))
    assert question.photograph.mode == "RGB"
    assert question.neighbor_patch.size == (32, 32)


def test_a_backbone_alone_cannot_guess(photograph: Image.Image) -> None:
    model = ContextPredictionModel.from_card(Card("alone", "resnet18", pair_layers=False)).eval()
    assert not can_guess(model)
    with pytest.raises(InvalidInputError, match="backbone alone"):
        ask(model, photograph, seeded(0))


def question_of(position: int, predicted: int) -> Question:
    probabilities = tuple(0.3 if k == predicted else 0.1 for k in range(8))
    return Question(Image.new("RGB", (40, 40)), (10, 10, 20, 20), (0, 0, 10, 10), position, probabilities)


def test_score_counts_both() -> None:
    score = Score().after(question_of(2, 2), 2).after(question_of(2, 5), 2).after(question_of(0, 0), 7)
    assert score == Score(asked=3, person=2, model=2)


@pytest.mark.parametrize("guess", [-1, 8, 2.0, True, None, "2"])
def test_what_is_no_position_is_refused(guess: object) -> None:
    with pytest.raises(InvalidInputError, match="0 … 7"):
        Score().after(question_of(2, 2), guess)  # type: ignore[arg-type]


def test_cells_are_those_of_the_grid() -> None:
    assert [cell_of(k) for k in range(8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_game_goes_on_and_counts_each_answer_once(tiny: ContextPredictionModel, collection: Path) -> None:
    pytest.importorskip("gradio")
    from context_pred.app.album import Album
    from context_pred.app.guess_tab import begun

    album = Album.of(tiny, collection, (), torch.device("cpu"))
    game = begun(album, seed=1)[0]
    assert game.question is not None
    once = game.answered(game.question.position)
    assert once.score.person == once.score.asked == 1
    assert once.answered(0) == once
    second = once.following(album)
    assert second.guess is None
    assert second.score == once.score
    assert second.question is not None
    assert (second.question.name, second.question.center) != (game.question.name, game.question.center)
    same = begun(album, seed=1)[0].question
    assert same is not None
    assert (same.name, same.center, same.neighbor) == (game.question.name, game.question.center, game.question.neighbor)
    assert begun(album, None)[0].seed != begun(album, None)[0].seed


def test_a_game_passes_over_damaged_photographs(tiny: ContextPredictionModel, collection: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from context_pred.app.album import Album
    from context_pred.app.guess_tab import Game
    from context_pred.errors import ImageError

    (tmp_path / "damaged.jpg").write_bytes(b"none")
    album = Album.of(tiny, [tmp_path / "damaged.jpg", collection / "koala.png"], (), torch.device("cpu"))
    games = [Game(seed).following(album) for seed in range(6)]
    assert {game.question.name for game in games if game.question} == {"koala.png"}
    with pytest.raises(ImageError, match=r"damaged\.jpg"):
        Game(0).following(replace(album, paths=(str(tmp_path / "damaged.jpg"),)))
