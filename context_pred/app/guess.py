"""The pretext task as a game: where does the neighbour lie, seen from the centre? Person and model guess.

Source: Doersch, Gupta, Efros, ICCV 2015, figures 1 and 2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from PIL import Image

from context_pred.errors import InvalidInputError
from context_pred.geometry import as_trained, cut_each, kept_pairs, scaled
from context_pred.model import ContextPredictionModel
from context_pred.patches import POSITIONS
from context_pred.patches.layout import OFFSETS

Box = tuple[int, int, int, int]

_DRAWS = 20


@dataclass(frozen=True)
class Question:
    """One pair of patches of a photograph, and what the model makes of it.

    Attributes:
        photograph: As the patches were cut from it, RGB, scaled as in the model's training.
        center: The centre patch: x1, y1, x2, y2, half-open, in px of ``photograph``.
        neighbor: The neighbour, likewise.
        position: Where the neighbour lies, 0…7 in raster order.
        probabilities: The model's, one a position; they sum to 1.
        name: What the photograph is called.
    """

    photograph: Image.Image
    center: Box
    neighbor: Box
    position: int
    probabilities: tuple[float, ...]
    name: str = ""

    @property
    def predicted(self) -> int:
        """The position that the model takes for the likeliest."""
        return max(range(8), key=self.probabilities.__getitem__)

    @property
    def center_patch(self) -> Image.Image:
        """The centre patch's pixels."""
        return self.photograph.crop(self.center)

    @property
    def neighbor_patch(self) -> Image.Image:
        """The neighbour's pixels."""
        return self.photograph.crop(self.neighbor)


@dataclass(frozen=True)
class Score:
    """How often each was right."""

    asked: int = 0
    person: int = 0
    model: int = 0

    def after(self, question: Question, guess: int) -> Score:
        """Return the score when the person has answered one more question.

        Raises:
            InvalidInputError: ``guess`` is no position.
        """
        if isinstance(guess, bool) or not isinstance(guess, int) or not 0 <= guess < len(POSITIONS):
            raise InvalidInputError(f"guess={guess!r}; accepted: a position, 0 … 7.")
        truth = question.position
        return Score(self.asked + 1, self.person + (guess == truth), self.model + (question.predicted == truth))


def can_guess(model: ContextPredictionModel) -> bool:
    """Tell whether the model has what compares two patches."""
    return model.neck is not None and model.head is not None


def ask(model: ContextPredictionModel, image: Image.Image, generator: torch.Generator, *, name: str = "") -> Question:
    """Draw one pair of patches with the model's own sampler, and let the model guess.

    The photograph is scaled as in the model's training, and the model sees the patches as its sampler prepares them.
    They never turn grey, since the person sees the photograph's own pixels.

    Args:
        model: The model, in eval mode, with neck and head.
        image: The photograph.
        generator: Source of every random number: the size, the patches, the pair, and the noise in dropped colours.
        name: What to call the photograph.

    Raises:
        InvalidInputError: a backbone alone; or the photograph is too narrow for a pair of patches.
    """
    sampler = model.patch_sampler
    geometry = as_trained(sampler, None)
    for _ in range(_DRAWS):
        size = geometry.size(image.height, image.width, generator)
        draw = geometry.sampler.draw([size], generator)
        if len(draw.position):
            break
    else:
        raise InvalidInputError(f"{name or 'The photograph'} has no room for two patches of {sampler.patch} px.")
    one = torch.randint(len(draw.position), (1,), generator=generator)
    draw = dataclasses.replace(kept_pairs(draw, one), grayscale=None, aperture=None)
    pixels = scaled(image, size, model.card.in_channels)
    device = next(model.parameters()).device
    with torch.inference_mode():
        pairs = cut_each(sampler, [pixels.to(device)], [draw], generator)
        probabilities = model(pairs)[0].double().softmax(0).tolist()
    photograph = Image.fromarray(scaled(image, size, 3).permute(1, 2, 0).numpy())
    center, neighbor = (draw.boxes[int(k)].tolist() for k in (draw.center[0], draw.neighbor[0]))
    return Question(
        photograph, _box(center), _box(neighbor), int(draw.position[0]), tuple(probabilities), name
    )  # fmt: skip


def _box(corners: list[int]) -> Box:
    x1, y1, x2, y2 = corners
    return x1, y1, x2, y2


def cell_of(position: int) -> tuple[int, int]:
    """Return (row, column) of a position in the 3×3 arrangement, each 0 … 2; the centre is (1, 1)."""
    down, right = OFFSETS[position]
    return down + 1, right + 1
