"""What keeps a network from solving the pretext task by a shortcut: colour, and the look of single pixels.

Chromatic aberration tells where in the lens a patch was seen, so colour is dropped, projected away, turned grey or
blurred; down-and-up sampling hides the pixel lattice, an aperture the border. Every function takes a batch of patches,
works on the patches' device without a loop over them, and draws from the ``torch.Generator`` given. Patches are uint8
(0…255) or floating (0…1); where a function turns uint8 into floats, they are value / 255 in float32.

Sources: Doersch, Gupta, Efros, ICCV 2015, section 3 (dropping, projection, down-sampling); the authors' released code,
cdoersch/deepcontext at 5307282 (the other reading of dropping); Pillow's "L" and mmcv's RandomGrayscale (grey);
Mundhenk, Ho, Chen, CVPR 2018, and the code they released, LLNL/selfsupervised at f5e05b6 (chroma blurring, aperture).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from context_pred.errors import InvalidInputError, unknown

from ._random import below, normal, uniform

__all__ = [
    "blank_outside",
    "blur_chroma",
    "down_and_up",
    "draw_apertures",
    "draw_sides",
    "drop_colors",
    "grayscale_mean",
    "grayscale_pil",
    "project_colors",
    "projection_matrix",
]

Dropping = Literal["code", "paper"]

GREEN_MAGENTA = (-1.0, 2.0, -1.0)
"""The axis of the RGB cube along which chromatic aberration shifts colours apart: a of section 3."""

SMALLEST_SIDE = 10
"""Down-sampled patches keep at least 10 × 10 = 100 pixels."""

CODE_RMS = 50.0
"""The root mean square that the released code scales every colour-dropped patch to."""

LUMA = (0.299, 0.587, 0.114)
"""Red's, green's and blue's share of Pillow's luma."""

CHROMA_SIGMA = 1 / 16
"""Standard deviation of the chroma blur as a share of the patch's side: 6 px of 96, 4 px of 64."""


def grayscale_pil(patches: Tensor) -> Tensor:
    """Turn patches grey as Pillow's ``convert("L")`` does, three channels kept.

    Args:
        patches: (…, 3, H, W), RGB; uint8 or floating.

    Returns:
        The same shape and dtype, the channels equal. uint8 is Pillow's integer result exactly:
        (19595 R + 38470 G + 7471 B + 32768) // 65536. Floating is .299 R + .587 G + .114 B.

    Raises:
        InvalidInputError: not three channels, or another dtype.
    """
    _check(patches)
    return luma_pil(patches).unsqueeze(-3).repeat_interleave(3, -3)


def luma_pil(patches: Tensor) -> Tensor:
    """Compute the one channel of ``grayscale_pil``: (…, 3, H, W) to (…, H, W), the same dtype."""
    red, green, blue = patches.unbind(-3)
    if patches.dtype != torch.uint8:
        return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    luma = red.to(torch.int32).mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768)
    return luma.bitwise_right_shift_(16).to(torch.uint8)


def grayscale_mean(patches: Tensor) -> Tensor:
    """Turn patches grey as mmselfsup 1.x does: the channels' mean, truncated; three channels kept.

    Upstream (mmcv ``RandomGrayscale``) multiplies each channel by 1/3 in float64, adds blue, green, red in that order
    and truncates. The rounding error lowers 42 of the 256 values even of a patch that was grey already (7, 14, 25 …).

    Args:
        patches: (…, 3, H, W), RGB; uint8 or floating.

    Returns:
        The same shape and dtype, the channels equal. Floating is the plain mean.

    Raises:
        InvalidInputError: not three channels, or another dtype.
    """
    _check(patches)
    return luma_mean(patches).unsqueeze(-3).repeat_interleave(3, -3)


def luma_mean(patches: Tensor) -> Tensor:
    """Compute the one channel of ``grayscale_mean``: (…, 3, H, W) to (…, H, W), the same dtype."""
    if patches.dtype != torch.uint8:
        return patches.mean(-3)
    red, green, blue = (patches.to(torch.float64) * (1.0 / 3.0)).unbind(-3)
    return (blue + green + red).to(torch.uint8)


def cut_some_gray(
    cut: Callable[[Tensor, Tensor], Tensor],
    boxes: Tensor,
    image: Tensor,
    gray: Tensor,
    luma: Callable[[Tensor], Tensor],
) -> Tensor:
    """Cut boxes out of images and turn some of the patches grey: what both would give, in half the time.

    The patches that turn grey are cut first, so that they are changed in place; then whole patches are put in order.

    Args:
        cut: (boxes, image) to patches (K, 3, h, w), RGB; uint8 or floating.
        boxes: int64 (K, 4).
        image: int64 (K,).
        gray: bool (K,), which patches turn grey.
        luma: ``luma_pil`` or ``luma_mean``.

    Returns:
        (K, 3, h, w), in the order of ``boxes``.
    """
    count = int(gray.sum())
    if not count:
        return cut(boxes, image)
    order = gray.to(torch.uint8).argsort(descending=True, stable=True)
    patches = cut(boxes[order], image[order])
    _check(patches, batch=True)
    # On a CPU blocks of half a megabyte of integers stay in the cache, which is four times as fast.
    block = max(1, 2**17 // patches[0, 0].numel()) if patches.device.type == "cpu" else count
    for first in range(0, count, block):
        part = patches[first : min(first + block, count)]
        part.copy_(luma(part)[:, None])
    return patches.index_select(0, order.argsort())


def projection_matrix(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return B = I − aᵀa / (a aᵀ), (3, 3), a the green–magenta axis [−1, 2, −1]: a projection that keeps greys.

    Args:
        device: Where the matrix lies.
        dtype: Its precision.
    """
    axis = torch.tensor(GREEN_MAGENTA, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - torch.outer(axis, axis) / axis.dot(axis)
    return matrix.to(device=device, dtype=dtype)


def project_colors(patches: Tensor) -> Tensor:
    """Remove the green–magenta axis from every pixel (section 3, "color projection").

    Args:
        patches: (…, 3, H, W), RGB; uint8 or floating.

    Returns:
        The same shape; float32, or float64 for float64 patches. Values may leave 0…1 by a third.

    Raises:
        InvalidInputError: not three channels, or another dtype.
    """
    _check(patches)
    values = _floating(patches)
    matrix = projection_matrix(values.device, values.dtype)
    return torch.einsum("ij,...jhw->...ihw", matrix, values)


def drop_colors(patches: Tensor, reading: Dropping = "code", generator: torch.Generator | None = None) -> Tensor:
    """Keep one channel of each patch, drawn at random, and fill the other two with noise ("color dropping").

    The paper and the released code differ:

    - "code": the kept channel minus its own mean over the patch; the others uniform in ±.5 grey levels of 255;
      then the patch divided by the root mean square of its three channels, times 50.
    - "paper": the kept channel as it is (the mean has been subtracted before); the others Gaussian around zero, with a
      hundredth of the kept channel's standard deviation over the patch.

    Args:
        patches: (K, 3, H, W); uint8 or floating.
        reading: "code" or "paper".
        generator: Source of the random numbers; on the CPU or on the patches' device.

    Returns:
        (K, 3, H, W); float32, or float64 for float64 patches. "code" has a root mean square of 50 a patch; "paper"
        keeps the scale.

    Raises:
        InvalidInputError: not three channels, another dtype, or an unknown reading.
    """
    _check(patches, batch=True)
    if reading not in ("code", "paper"):
        raise unknown("reading of colour dropping", str(reading), ("code", "paper"))
    values = _floating(patches)
    count, _, rows, columns = values.shape
    channel = uniform((count,), generator, values.device).mul(3).long()
    at = channel.reshape(-1, 1, 1, 1).expand(-1, 1, rows, columns)
    kept = values.gather(1, at)
    if reading == "code":
        kept = (kept - kept.mean((-2, -1), keepdim=True)) * 255.0
        dropped = uniform(tuple(values.shape), generator, values.device, values.dtype).sub_(0.5)
        dropped.scatter_(1, at, kept)
        return dropped.mul_(CODE_RMS / dropped.square().mean((1, 2, 3), keepdim=True).sqrt())
    spread = kept.std((-2, -1), keepdim=True, correction=0) / 100.0
    dropped = normal(tuple(values.shape), generator, values.device, values.dtype).mul_(spread)
    return dropped.scatter_(1, at, kept)


def blur_chroma(patches: Tensor, sigma: float = CHROMA_SIGMA) -> Tensor:
    """Blur the colours of patches and keep their luma, so that fringes of colour lose their place ("chroma blurring").

    Each patch is split into Pillow's luma Y and the differences R − Y and B − Y (BT.601's axes, unscaled). Both
    differences become Gaussian means over the patch, the weights normalised inside it, and join Y again; green follows
    from Y. So a patch depends on no pixel beyond its border, one of a single colour stays as it is, and a grey one too.

    Mundhenk, Ho and Chen (CVPR 2018) blur a and b of Lab in patches they prepared beforehand; their code does not
    contain that step. The axes, the Gaussian and its width are ours.

    Args:
        patches: (…, 3, H, W), RGB; uint8 or floating.
        sigma: Standard deviation of the Gaussian, as a share of the shorter side; above 0.

    Returns:
        The same shape and dtype, clamped to 0…255 or 0…1; uint8 is rounded.

    Raises:
        InvalidInputError: not three channels, another dtype, or a sigma that is not above 0.
    """
    _check(patches)
    if not sigma > 0:
        raise InvalidInputError(f"sigma={sigma} is no width of a blur; accepted: above 0, as a share of the side.")
    values = patches if patches.dtype == torch.float64 else patches.to(torch.float32)
    rows, columns = patches.shape[-2:]
    width = sigma * min(rows, columns)
    down, across = (_gaussian(side, width, values) for side in (rows, columns))
    luma = luma_pil(values).unsqueeze(-3)
    difference = down @ (values[..., ::2, :, :] - luma) @ across.mT
    green = (LUMA[0] * difference[..., :1, :, :] + LUMA[2] * difference[..., 1:, :, :]) / -LUMA[1]
    red, blue = torch.split(difference, 1, -3)
    mixed = torch.cat([red, green, blue], -3).add_(luma)
    if patches.dtype == torch.uint8:
        return mixed.round_().clamp_(0, 255).to(torch.uint8)
    return mixed.clamp_(0, 1).to(patches.dtype)


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """Make the (side, side) matrix that blurs an axis; row i weighs the places by their distance from i, in all 1."""
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    return torch.softmax((place - place[:, None]).square() / (-2 * sigma**2), 1)


def draw_apertures(
    images: int, patches: int, patch: int, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw what stays of each patch under a random aperture, for ``blank_outside``.

    As in the code of Mundhenk, Ho and Chen (CVPR 2018) a square of patch − patch // 3 … patch px (of 96 px: 64 … 96)
    is drawn at random inside the patch, once for all the patches of an image. There two patches of three get it; here
    each patch does with the given probability.

    Args:
        images: How many images.
        patches: How many patches an image has.
        patch: Side of a patch in px.
        probability: That a patch gets the aperture of its image; otherwise it stays whole.
        generator: Source of the random numbers.

    Returns:
        int64 (images · patches, 4) on the CPU: x1, y1, x2, y2, half-open, in px of the patch.
    """
    chosen = uniform((images, patches, 1), generator) < probability
    smallest = patch - patch // 3
    side = smallest + below(torch.full((images, 1), patch - smallest + 1), generator)
    corner = below((patch - side + 1).expand(images, 2), generator)
    window = torch.cat([corner, corner + side], 1)[:, None]
    return torch.where(chosen, window, torch.tensor([0, 0, patch, patch])).reshape(-1, 4)


def blank_outside(patches: Tensor, window: Tensor, value: Sequence[float]) -> Tensor:
    """Fill each patch outside its own window with one colour ("aperture").

    Args:
        patches: (K, C, H, W); any dtype and range.
        window: int64 (K, 4), x1, y1, x2, y2, half-open, in px of the patch.
        value: The colour, one number a channel, in the patches' range.

    Returns:
        The same shape and dtype.

    Raises:
        InvalidInputError: another number of windows or channels.
    """
    if patches.ndim != 4 or window.shape != (len(patches), 4) or len(value) != patches.shape[1]:
        raise InvalidInputError(
            f"Patches (K, C, H, W) need windows (K, 4) and a value a channel, not {tuple(patches.shape)}, "
            f"{tuple(window.shape)} and {len(value)} values."
        )
    x1, y1, x2, y2 = window.to(patches.device)[:, :, None].unbind(1)
    row, column = (torch.arange(side, device=patches.device) for side in patches.shape[-2:])
    inside = ((row >= y1) & (row < y2))[:, :, None] & ((column >= x1) & (column < x2))[:, None]
    return torch.where(inside[:, None], patches, patches.new_tensor(value).reshape(-1, 1, 1))


def down_and_up(
    patches: Tensor,
    probability: float = 0.33,
    generator: torch.Generator | None = None,
    *,
    antialias: bool = False,
) -> Tensor:
    """Shrink some patches to a random side and enlarge them again, both bilinear, so that they look pixelated.

    The side is int(√(u (p−1)² + (1 − u) 10²)), u uniform in 0…1, p the patch's side: the area is uniform, the smallest
    100 pixels (released code; the paper names the 100 pixels and says "some patches").

    Args:
        patches: (K, C, p, p), square, p above 10; uint8 or floating (any range).
        probability: That a patch is resampled; the released code's is .33.
        generator: Source of the random numbers; on the CPU or on the patches' device.
        antialias: False samples the patch when shrinking, as the released code's ``skimage.transform.resize`` of its
            day did (edges repeat here; there they darkened). True averages over the source pixels, as Pillow does.

    Returns:
        The same shape and dtype; uint8 is rounded once, at the end.

    Raises:
        InvalidInputError: patches that are not square or at most 10 px, another dtype, no probability.
    """
    side = draw_sides(len(patches), patches.shape[-1], probability, generator, patches.device)
    return resample(patches, side, antialias=antialias)


def draw_sides(
    count: int,
    patch: int,
    probability: float = 0.33,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the side that each of ``count`` patches is shrunk to, int64 (count,); ``patch`` where it stays as it is.

    Args:
        count: How many patches.
        patch: Their side in px.
        probability: Of being shrunk, each.
        generator: Source of the random numbers.
        device: Where the result lies.

    Returns:
        int64 (count,), from 10 to ``patch``; areas are uniform.

    Raises:
        InvalidInputError: no probability, or patches too small to be shrunk.
    """
    if not 0 <= probability <= 1:
        raise InvalidInputError(f"probability={probability} is no probability; accepted: 0 … 1.")
    if patch <= SMALLEST_SIDE:
        raise InvalidInputError(f"Patches of {patch} px cannot be shrunk to {SMALLEST_SIDE} px and more.")
    chance, u = uniform((2, count), generator, device)
    smallest, largest = SMALLEST_SIDE**2, (patch - 1) ** 2
    side = (u * (largest - smallest) + smallest).sqrt().long()
    return torch.where(chance < probability, side, patch)


def resample(patches: Tensor, side: Tensor, *, antialias: bool = False) -> Tensor:
    """Shrink each patch to its own ``side`` and enlarge it again, both bilinear; see ``down_and_up``.

    Args:
        patches: (K, C, p, p), square; uint8 or floating (any range).
        side: int64 (K,), 1…p; p leaves the patch untouched.
        antialias: As in ``down_and_up``.

    Returns:
        The same shape and dtype.

    Raises:
        InvalidInputError: patches that are not square, another dtype, or sides outside 1…p.
    """
    _check(patches, batch=True, channels=None)
    whole = patches.shape[-1]
    if patches.shape[-2] != whole:
        raise InvalidInputError(f"Down-and-up sampling takes square patches, not {tuple(patches.shape[-2:])}.")
    side = side.to(patches.device)
    if side.shape != patches.shape[:1] or bool(((side < 1) | (side > whole)).any()):
        raise InvalidInputError(f"Sides must be {len(patches)} numbers in 1…{whole}.")
    (chosen,) = torch.nonzero(side < whole, as_tuple=True)
    if not len(chosen):
        return patches
    # Shrinking and enlarging are linear: one matrix a patch does both, and differing sides differ only in the matrix.
    small = side[chosen]
    full = torch.full_like(small, whole)
    matrix = _bilinear(small, full, whole, whole, antialias=False) @ _bilinear(full, small, whole, whole, antialias)
    values = patches[chosen]
    work = values if values.dtype == torch.float64 else values.to(torch.float32)
    matrix = matrix.to(work.dtype)[:, None]
    result = matrix @ work @ matrix.mT
    if patches.dtype == torch.uint8:
        result = result.round_().clamp_(0, 255)
    return patches.index_copy(0, chosen, result.to(patches.dtype))


def _bilinear(source: Tensor, target: Tensor, columns: int, rows: int, antialias: bool) -> Tensor:
    """Make the (K, rows, columns) matrices that resize ``source[k]`` samples to ``target[k]``; zero beyond those."""
    source, target = source.reshape(-1, 1, 1).float(), target.reshape(-1, 1, 1).float()
    scale = source / target
    row = torch.arange(rows, device=source.device).reshape(1, -1, 1)
    column = torch.arange(columns, device=source.device).reshape(1, 1, -1)
    center = (row + 0.5) * scale - 0.5
    reach = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    weight = (1 - (column - center).abs() / reach).clamp(min=0) * (column < source)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    return weight * (row < target)


def _floating(patches: Tensor) -> Tensor:
    if patches.dtype == torch.uint8:
        return patches.to(torch.float32) / 255.0
    return patches if patches.dtype == torch.float64 else patches.to(torch.float32)


def _check(patches: Tensor, *, batch: bool = False, channels: int | None = 3) -> None:
    if not (patches.dtype == torch.uint8 or patches.is_floating_point()):
        raise InvalidInputError(f"Patches must be uint8 (0…255) or floating (0…1), not {patches.dtype}.")
    axes = "(K, 3, H, W)" if batch else "(…, 3, H, W)"
    wrong = patches.ndim != 4 if batch else patches.ndim < 3
    if wrong or (channels is not None and patches.shape[-3] != channels):
        raise InvalidInputError(f"Patches must have the shape {axes}, not {tuple(patches.shape)}.")
