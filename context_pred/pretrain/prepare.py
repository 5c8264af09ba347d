"""From an image file to the pixels and boxes that the network's patches are cut from: what a worker does."""

from __future__ import annotations

from dataclasses import dataclass

from context_pred.errors import InvalidInputError, unknown

MODES = ("resize", "pixels", "squares")


@dataclass(frozen=True)
class ImageOptions:
    """How a photograph is brought to the size that the sampler cuts at: a recipe's table ``[images]``.

    Args:
        mode: "resize": to one size (OpenMMLab); "pixels": to a random number of pixels (Doersch et al., section 4.1;
            ``patches.random_pairs.draw_size``); "squares": a random square of it, resized to the sampler's crop.
        resize: Of mode "resize": the shorter side in px.
        keep_ratio: Of mode "resize": False squashes to a square of ``resize`` px, as mmselfsup 1.x does.
        antialias: Of mode "resize": True averages over source pixels as Pillow does (mmselfsup 0.x); False samples
            bilinearly, as OpenCV's INTER_LINEAR (1.x).
        pixels: Of mode "pixels": the fewest and the most pixels.
        squares: Of mode "squares": the side's smallest and largest share of the photograph's shorter side; the
            logarithm of the side is uniform.
        flip: Probability that the image is mirrored, left to right, before the patches are drawn.

    Raises:
        UnknownNameError: another mode.
        InvalidInputError: a value out of its range.
    """

    mode: str = "resize"
    resize: int = 292
    keep_ratio: bool = True
    antialias: bool = True
    pixels: tuple[int, int] = (150_000, 450_000)
    squares: tuple[float, float] = (0.35, 1.0)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("mode of the images", str(self.mode), MODES)
        for name, kind in (("pixels", int), ("squares", float)):  # lists, as TOML gives them, become tuples
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(_is_number(v) for v in value):
                raise InvalidInputError(f"{name}={value!r}; accepted: two numbers, the smaller first.")
            if any(kind(v) != v for v in value):
                raise InvalidInputError(f"{name}={value!r}; accepted: two whole numbers, the smaller first.")
            object.__setattr__(self, name, tuple(kind(v) for v in value))
        for name in ("keep_ratio", "antialias"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name}={getattr(self, name)!r}; accepted: true or false.")
        if isinstance(self.resize, bool) or not isinstance(self.resize, int) or self.resize < 1:
            raise InvalidInputError(f"resize={self.resize!r}; accepted: a whole number of px from 1 up.")
        if not 1 <= self.pixels[0] <= self.pixels[1]:
            raise InvalidInputError(f"pixels={self.pixels}; accepted: 1 ≤ fewest ≤ most pixels.")
        if not 0 < self.squares[0] <= self.squares[1] <= 1:
            raise InvalidInputError(f"squares={self.squares}; accepted: 0 < smallest ≤ largest ≤ 1, of the short side.")
        if not _is_number(self.flip) or not 0 <= self.flip <= 1:
            raise InvalidInputError(f"flip={self.flip!r} is no probability; accepted: 0 … 1.")
        object.__setattr__(self, "flip", float(self.flip))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
