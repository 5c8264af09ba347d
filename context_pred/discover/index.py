"""An index of photographs, or of their patches, that is asked for the nearest neighbours of a vector or a picture.

    index = NeighborIndex.build("photos/", model, out="photos.index", patches=True)
    index = NeighborIndex.load("photos.index", model)
    for match in index.query("a patch.jpg", k=10)[0]:
        print(match.path, match.box, match.score)

Vectors are compared by normalised correlation: mean subtracted, length divided out, dot product (Doersch, Gupta,
Efros, ICCV 2015, section 4.1 and figure 4).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from context_pred.data.files import find_images
from context_pred.data.images import open_image, to_rgb
from context_pred.errors import InvalidInputError, check_whole_number, unknown
from context_pred.extract.network import Network, find_device
from context_pred.extract.work import differences
from context_pred.geometry import scaled

from .grid import PatchGrid, usual_grid
from .index_folder import MANIFEST, Manifest, Source, begin, commit, locked, open_parts, search_parts
from .index_source import check_enough, check_model, check_picture, extracted, new_files, remove_extracted, settings_of
from .patches import features_of, loaded, network_of, normalized
from .search import EXACT_ROWS, FEWEST_CODED, PROBES, Floats, Rows, best_of_groups, numbers_of

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Match", "NeighborIndex"]

KINDS: Mapping[str, int | None] = {"auto": EXACT_ROWS, "exact": None, "ivf": FEWEST_CODED}
"""From how many rows on a part gets an inverted file."""


@dataclass(frozen=True)
class Match:
    """A neighbour.

    Attributes:
        path: The photograph.
        box: Where the patch lies in it, x1, y1, x2, y2 in px; None in an index of whole images.
        score: Normalised correlation, −1 … 1.
    """

    path: str
    box: tuple[float, float, float, float] | None
    score: float


class NeighborIndex:
    """Vectors of photographs or patches in a folder, memory-mapped. ``build``, ``of`` and ``load`` make one.

    Args:
        manifest: What its ``index.json`` says; ``load`` reads it.

    Attributes:
        folder: Where it lies.
        settings: What it was made with: kind, model, weights (their digest), layer, pool, patches, grid.
        model: What it was built or loaded with, or None.
    """

    def __init__(self, folder: Path, manifest: Manifest, model: ContextPredictionModel | None = None) -> None:
        self.folder, self.model = folder, model
        self._network: Network | None = None
        self._replaces = False  # whether what lies in the folder goes once something is added
        self._open(manifest)

    def _open(self, manifest: Manifest) -> None:
        parts = open_parts(self.folder, manifest)
        widths = {part.vectors.shape[1] for part in parts}
        if len(widths) > 1:
            raise InvalidInputError(f"The index in {self.folder} is damaged: its vectors have {sorted(widths)} values.")
        self._manifest, self._parts, self.settings = manifest, parts, manifest.settings
        self._firsts: Rows = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        starts = [part.starts[:-1] + first for part, first in zip(parts, self._firsts, strict=False)]
        self.starts: Rows = np.concatenate([*starts, self._firsts[-1:]])
        self.paths: tuple[str, ...] = tuple(path for part in parts for path in part.paths)

    @classmethod
    def build(
        cls,
        images: str | Path | Sequence[str | Path],
        model: ContextPredictionModel | str | Path,
        *,
        out: str | Path,
        layer: str = "feature4",
        patches: bool = False,
        pool: str = "gap",
        grid: PatchGrid | None = None,
        kind: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        device: str | torch.device = "auto",
        overwrite: bool = False,
        progress: bool = True,
    ) -> NeighborIndex:
        """Make an index of images, or bring one up to date: what it has already is not computed again.

        A call that was stopped goes on where it ended when it is made again.

        Args:
            images: As ``find_images`` takes them.
            model: The model, or what ``load_pretrained`` takes.
            out: The index' folder.
            layer: The layer to compare.
            patches: Index the patches of a grid instead of whole images.
            pool: "gap", "grid" or "none", as in ``extract.run``; of patches "gap", "quarters" or "none", as in
                ``patch_features``.
            grid: Where patches lie; None: ``usual_grid``.
            kind: "exact": all vectors are compared. "ivf": an inverted file finds most of the nearest (a part of fewer
                than ``FEWEST_CODED`` vectors has none). "auto": an inverted file from ``EXACT_ROWS`` vectors on.
            batch_size: Images at once; None: 32, of patches 8.
            workers: As in ``extract.run``.
            device: As in ``extract.run``.
            overwrite: Replace an index that was made otherwise, or of other files; the old one stays until then.
            progress: Show a bar.

        Raises:
            InvalidInputError: no images; an argument that is not accepted; or ``out`` has an index that was made
                otherwise, is damaged, or whose images have changed since.
            UnknownNameError: an unknown model, layer, pooling or kind.
            ImageError: no image can be opened.
            StorageError: ``out`` cannot be written to. What was there is kept.
        """
        if kind not in KINDS:
            raise unknown("kind of index", kind, KINDS)
        model = loaded(model)
        (layer,) = model.backbone.chosen((layer,))
        if grid is not None and not patches:
            raise InvalidInputError("A grid without patches=True; whole images have none.")
        if not isinstance(grid, PatchGrid | None):
            raise InvalidInputError(f"grid={grid!r}; accepted: a PatchGrid, or None.")
        if patches:
            grid = grid or usual_grid(model)
        settings = settings_of(model, layer, pool, grid, kind)
        folder = Path(out)
        if not (folder / MANIFEST).exists():
            manifest = begin(folder, settings)
        else:
            manifest = Manifest.read(folder)
            if manifest.settings != settings and not overwrite:
                raise InvalidInputError(
                    f"{folder} has an index made with other settings: {differences(manifest.settings, settings)}. "
                    "Overwrite it with overwrite=True, remove it, or choose another folder."
                )
        index = cls(folder, Manifest(settings, {}, manifest.made) if overwrite else manifest, model)
        index._replaces = overwrite
        index.add(images, batch_size=batch_size, workers=workers, device=device, progress=progress)
        return index

    @classmethod
    def of(
        cls, vectors: Any, *, out: str | Path, kind: str = "auto", names: Sequence[str] | None = None
    ) -> NeighborIndex:
        """Make an index of vectors that are there already, in an empty folder.

        Args:
            vectors: (n, …) numbers, n ≥ 1, memory-mapped or not; they are normalised block by block.
            out: The folder.
            kind: As in ``build``.
            names: A path for each row; None: one for all, "vectors".

        Raises:
            InvalidInputError: no rows or none of finite numbers, another number of names, or a folder with other files.
            StorageError: the folder cannot be written to.
            UnknownNameError: no such kind.
        """
        if kind not in KINDS:
            raise unknown("kind of index", kind, KINDS)
        vectors = numbers_of(vectors)
        if 0 in vectors.shape or (names is not None and (isinstance(names, str) or len(names) != len(vectors))):
            raise InvalidInputError(
                f"Vectors of shape {vectors.shape}, and names={names!r:.60}; accepted: a row or more of a value or "
                "more, and as many names as rows, or None."
            )
        folder = Path(out)
        images = [{"path": str(name), "rows": 1} for name in names or ()] or [{"path": "vectors", "rows": len(vectors)}]
        begin(folder, {"kind": kind})  # before a lock is put into another program's folder
        with locked(folder):
            manifest = begin(folder, {"kind": kind})
            return cls(folder, commit(folder, manifest, [], Source(vectors, None, images), KINDS[kind]))

    @classmethod
    def load(cls, folder: str | Path, model: ContextPredictionModel | str | Path | None = None) -> NeighborIndex:
        """Open an index.

        Args:
            folder: The index' folder.
            model: What it was built with; needed by ``query`` and ``add``.

        Raises:
            InvalidInputError: the folder has no index, one that is damaged, or one made with another model.
        """
        manifest = Manifest.read(Path(folder))
        if model is not None:
            model = loaded(model)
            check_model(Path(folder), manifest.settings, model)
        return cls(Path(folder), manifest, model)

    def __len__(self) -> int:
        """Return how many vectors."""
        return int(self._firsts[-1])

    def __str__(self) -> str:
        """Say what it is."""
        settings = self.settings
        what = f" ({settings['model']}, {settings['layer']}, {settings['pool']})" if "model" in settings else ""
        coded = sum(len(part) for part in self._parts if part.codes is not None)
        images = f"{len(self.paths):,} image{'' if len(self.paths) == 1 else 's'}{what}"
        return f"{len(self):,} vectors of {images}; {coded:,} of them in inverted files"

    @property
    def errors(self) -> dict[str, str]:
        """{path: reason} of the files that could not be opened."""
        good = set(self.paths)
        return {path: why for part in self._parts for path, why in part.errors.items() if path not in good}

    @property
    def grid(self) -> PatchGrid | None:
        """Where patches lie; None in an index of whole images."""
        grid = self.settings.get("grid")
        return None if grid is None else PatchGrid(**grid)

    def add(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str | torch.device = "auto",
        progress: bool = True,
    ) -> int:
        """Add images; those that are there already, and files known to be damaged, are passed over.

        The index in the folder stays as it was until all is ready, and then changes at once; a call that was stopped
        goes on where it ended when it is made again.

        Args:
            images: As ``find_images`` takes them.
            batch_size: Images at once; None: 32, of patches 8.
            workers: As in ``extract.run``.
            device: Where to compute, as in ``extract.run``.
            progress: Show a bar.

        Returns:
            How many images were added.

        Raises:
            InvalidInputError: no images, no model, or images of the index that have changed since.
            ImageError: none of the new images can be opened.
            StorageError: the folder cannot be written to, or another process adds to it. The index is as it was.
        """
        model = self._need_model()
        if batch_size is not None:
            check_whole_number("batch_size", batch_size)
        found = find_images(images)
        if self.paths:
            self._refresh()
            if not self._new(found):
                return 0
        with locked(self.folder):
            self._refresh()
            new = self._new(found)
            if not new:
                if not self.paths:
                    raise InvalidInputError(f"No images in {images!r} but what lies in {self.folder}.")
                return 0
            batch_size = batch_size or (8 if self.grid else 32)
            source = extracted(
                new,
                model,
                self.folder,
                layer=self.settings["layer"],
                pool=self.settings["pool"],
                grid=self.grid,
                batch_size=batch_size,
                workers=workers,
                device=device,
                progress=progress,
            )
            coded_from = KINDS[self.settings["kind"]]
            self._open(commit(self.folder, self._manifest, self._parts, source, coded_from))
            self._replaces = False
            remove_extracted(self.folder)
        return sum("error" not in image for image in source.images)

    def _new(self, found: Sequence[Path]) -> list[str]:
        # Those that could be opened last: they count where a file was mended.
        records = sorted((one for part in self._parts for one in part.records()), key=lambda one: "error" not in one)
        return new_files(found, records, self.folder)

    def _refresh(self) -> None:
        """Open what other processes have added since this index was opened."""
        if self._replaces or not (self.folder / MANIFEST).exists():
            return
        now = Manifest.read(self.folder)
        if now.settings != self.settings:
            raise InvalidInputError(
                f"The index in {self.folder} has been replaced: {differences(self.settings, now.settings)}."
            )
        if now != self._manifest:
            self._open(now)

    def search(self, vectors: Any, k: int, *, probes: int = PROBES) -> tuple[Floats, Rows]:
        """Find the nearest vectors of each vector.

        Args:
            vectors: (Q, …) floating; a row, flattened, is one vector. They are normalised here.
            k: How many.
            probes: Lists of an inverted file to look into: more find more and take longer; 0 compares all vectors.

        Returns:
            Scores, float32 (Q, k), falling along a row, and row numbers, int64 (Q, k); −∞ and −1 where fewer are there.

        Raises:
            InvalidInputError: vectors of another length, or numbers out of their range.
        """
        queries = self._queries(vectors)
        check_whole_number("k", k, 1)
        check_whole_number("probes", probes, 0)
        return search_parts(self._parts, queries, k, probes)

    def _queries(self, vectors: Any) -> Floats:
        queries = normalized(numbers_of(vectors))
        width = self._parts[0].vectors.shape[1]
        if queries.shape[1] != width:
            raise InvalidInputError(
                f"Vectors of {queries.shape[1]} values, and the index in {self.folder} has {width}: "
                "they are of another model, layer or pooling."
            )
        if not np.isfinite(queries).all():
            raise InvalidInputError("Vectors with values that are no finite numbers.")
        return queries

    def image_of(self, rows: Rows | Sequence[int]) -> Rows:
        """Return the number of the image of each row, an index into ``paths``.

        Args:
            rows: Numbers of vectors, int (n,).
        """
        return np.searchsorted(self.starts, np.asarray(rows), side="right") - 1

    def vectors(self, rows: Rows | Sequence[int]) -> Floats:
        """Return some of the index' vectors, normalised: float32 (n, D).

        Args:
            rows: Numbers of vectors, int (n,).

        Raises:
            InvalidInputError: a row that is not there, −1 too.
        """
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        found = np.empty((len(rows), self._parts[0].vectors.shape[1]), np.float32)
        which = np.searchsorted(self._firsts, rows, side="right") - 1
        for number, part in enumerate(self._parts):
            mine = which == number
            found[mine] = part.vectors[rows[mine] - self._firsts[number]]
        return found

    def match(self, row: int, score: float) -> Match:
        """Return a row with its image and its place; raises InvalidInputError where there is none, as for −1.

        Args:
            row: Number of the vector.
            score: Its similarity to the query.

        Raises:
            InvalidInputError: no such row.
        """
        self._check_rows(np.array([row]))
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        boxes = self._parts[number].boxes
        box = None if boxes is None else tuple(boxes[row - self._firsts[number]].tolist())
        return Match(self.paths[int(self.image_of([row])[0])], box, float(score))

    def _check_rows(self, rows: Rows) -> None:
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            raise InvalidInputError(
                f"Row {wrong[0]} of an index of {len(self):,} vectors; accepted: 0 … {len(self) - 1:,}."
            )

    def nearest_images(
        self, vectors: Any, k: int, *, without: Sequence[int] | None = None, probes: int = PROBES
    ) -> list[list[Match]]:
        """Find the k images nearest to each vector; of an index of patches, each by its nearest patch.

        Args:
            vectors: As in ``search``.
            k: How many; fewer are found where there are fewer.
            without: For each vector an image that does not count, an index into ``paths``, or −1.
            probes: As in ``search``.

        Returns:
            For each vector its matches, the nearest first.

        Raises:
            InvalidInputError: as in ``search``.
        """
        queries = self._queries(vectors)
        check_whole_number("k", k, 1)
        left_out = [-1] * len(queries) if without is None else [int(number) for number in without]
        if len(left_out) != len(queries) or not all(-1 <= number < len(self.paths) for number in left_out):
            raise InvalidInputError(
                f"without={without!r:.80}; accepted: for each of the {len(queries)} vectors a number of "
                f"{-1} … {len(self.paths) - 1}."
            )
        scores, rows = self.search(queries, min(8 * k + 64 if self.grid else k + 1, len(self)), probes=probes)
        images = self.image_of(rows)
        found = []
        for i, mine in enumerate(left_out):
            seen, best = {mine}, []
            for score, row, image in zip(scores[i].tolist(), rows[i].tolist(), images[i].tolist(), strict=True):
                if row >= 0 and image not in seen:
                    seen.add(image)
                    best.append((row, score))
            wanted = min(k, len(self.paths) - (mine >= 0))
            if len(best) < wanted:  # many of the nearest patches were of the same images
                best = self._best_of_images(queries[i], mine, wanted)
            found.append([self.match(row, score) for row, score in best[:k]])
        return found

    def _best_of_images(self, query: Floats, mine: int, k: int) -> list[tuple[int, float]]:
        each = [best_of_groups(query, part.vectors, part.starts) for part in self._parts]
        scores = np.concatenate([scores for scores, _ in each])
        rows = np.concatenate([rows + first for (_, rows), first in zip(each, self._firsts, strict=False)])
        if mine >= 0:
            scores[mine] = -np.inf
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(rows[i]), float(scores[i])) for i in order if np.isfinite(scores[i])]

    def query(
        self,
        images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
        k: int,
        *,
        device: str | torch.device = "auto",
    ) -> list[list[Match]]:
        """Find the neighbours of pictures; in an index of patches, each picture is one patch, cut out already.

        A file that is in the index itself is not its own neighbour.

        Args:
            images: One picture or several: paths, or Pillow images.
            k: How many.
            device: Where to compute.

        Returns:
            For each picture its neighbours, nearest first: images, or the nearest patch of each image.

        Raises:
            InvalidInputError: no model, no pictures, or the index has fewer images than asked for.
            ImageError: a picture cannot be opened.
        """
        check_whole_number("k", k, 1)
        given = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        if not given:
            raise InvalidInputError("No pictures to find the neighbours of; at least one is needed.")
        for one in given:
            check_picture(one)
        numbers = {os.path.realpath(path): number for number, path in enumerate(self.paths)}
        mine = [-1 if isinstance(one, Image.Image) else numbers.get(os.path.realpath(one), -1) for one in given]
        self.check_enough(k, max(mine) >= 0)
        opened = [to_rgb(one) if isinstance(one, Image.Image) else open_image(one) for one in given]
        return self.nearest_images(self.features(opened, device=device), k, without=mine)

    def features(self, images: Sequence[Image.Image], *, device: str | torch.device = "auto") -> Floats:
        """Compute the vectors of RGB pictures as those of the index were, not normalised: float32 (n, D).

        Args:
            images: RGB pictures; of an index of patches, each is a patch.
            device: Where to compute, as in ``extract.run``.

        Raises:
            InvalidInputError: the index is of vectors alone or was loaded without a model, or the device is not here.
        """
        model = self._need_model()
        grid = self.grid
        if self._network is None or self._network.device != find_device(device):
            layer, pool, place = self.settings["layer"], self.settings["pool"], find_device(device)
            if grid is not None:
                self._network = network_of(model, layer, pool, device)
            else:
                self._network = Network(model.backbone, model.transform, (layer,), pool, place, "float32")
        if grid is None:
            pixels = [model.transform.cut(image) for image in images]
        else:
            pixels = [scaled(image, (grid.patch, grid.patch), model.transform.in_channels) for image in images]
        return features_of(self._network, torch.stack(pixels))

    def check_enough(self, k: int, own: bool) -> None:
        """Raise InvalidInputError where there are fewer than k images beside the query's own.

        Args:
            k: How many neighbours are wanted.
            own: Whether the query itself is in the index.

        Raises:
            InvalidInputError: there are fewer.
        """
        check_enough(k, len(self.paths), own)

    def _need_model(self) -> ContextPredictionModel:
        if "model" not in self.settings:
            raise InvalidInputError(f"The index in {self.folder} is of vectors alone; no model belongs to it.")
        if self.model is None:
            raise InvalidInputError(f"Load the index with its model: NeighborIndex.load({str(self.folder)!r}, model).")
        return self.model
