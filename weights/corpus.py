"""Builds the unlabelled corpus of the shipped model from free pictures that anyone can fetch again.

    apt-get download gcompris-qt-data ...; dpkg -x gcompris-qt-data_*.deb debs/gcompris-qt-data; ...
    git clone https://github.com/marcusklasson/GroceryStoreDataset
    git clone https://github.com/BuddiesOfBudgie/budgie-backgrounds
    git clone https://github.com/alexeygrigorev/clothing-dataset
    python weights/corpus.py --debian debs --grocery GroceryStoreDataset --budgie budgie-backgrounds \
        --clothing clothing-dataset --exclude weights/corpus_exclude.txt --out CORPUS

`debs` has one folder a package of `PACKAGES` (those that are missing are skipped with a warning). The result is
`CORPUS/{train,heldout}/{grocery,free,clothing}/*.jpg`, RGB, short side at most 352 px (never enlarged), and
`CORPUS/corpus.json`, which says of every file where it comes from. Two minutes on two cores.

No label is read. Of GroceryStoreDataset only the train and val lists are taken; the test list is for evaluation. The
clothing dataset is taken whole. Left out: pictures with transparency (outlines of cut-outs give a patch's position
away), below 150 px, and of the free ones (not of the two sets, which are photographs throughout) also nearly flat
ones, drawings, charts and screenshots as far as `PACKAGES` and `why_not` tell, copies of one picture in other sizes,
and what `--exclude` names (the photographs in `docs/photos`).
Held out: ten per cent of the whole photographs, by a hash of the seed and the name; what looks alike, or is numbered
in one series of free pictures, falls on one side together. With `--clothing` or without, a photograph of the other
kinds is on the same side: a group of alike ones has its name from them.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import re
import subprocess
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from qres import read_qres

log = logging.getLogger("corpus")

SHORT_SIDE = 352
MIN_SIDE = 150
MAX_ASPECT = 3.0
# Of 256 bits of `fingerprint`: the same picture in another size or compression; a picture that looks much like it.
SAME_PICTURE, ALIKE = 16, 40
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """Where the pictures of a package lie below its root, and which of them: two regular expressions on the path.

    They stand for what no rule on pixels sees: renderings, patterns, series of chessboards, pictures with holes.
    """

    folder: str
    take: str = ""
    leave_out: str = "$^"


PACKAGES = {
    # babyshapes: paintings with white holes; chart and night_printing: tables; texture: one wall.
    "gcompris-qt-data": Source("usr/share/gcompris-qt/rcc", leave_out="/babyshapes/|/(chart|night_printing|texture)"),
    "plasma-workspace-wallpapers": Source(
        "usr/share/wallpapers",
        take="/(Autumn|BytheWater|ColdRipple|ColorfulCups|DarkestHour|EveningGlow|FallenLeaf|Grey|OneStandsOut|Path"
        "|summer_1am)/contents/images/",
    ),
    "mate-backgrounds": Source("usr/share/backgrounds", take="/nature/"),
    "lomiri-wallpapers-16.04": Source("usr/share/backgrounds"),
    "lomiri-wallpapers-20.04": Source("usr/share/backgrounds", leave_out="/(Painting|Fossa)"),
    "hugin-data": Source(
        "usr/share/hugin",
        take="/(AliasingPScubic|Barrel-distortion|Big_ben_rectilinear|CA_fringes|CA_strange01|CA_tCA00|SB_Parallax|"
        "300px-Lamp|Lamp|600px-Tuebingen_Neckarfront_small15)",
    ),
    "opencv-doc": Source(
        "usr/share/doc/opencv-doc/examples",
        leave_out=r"/(aloeGT|(left|right)\d|box\.|chessboard|digits|ellipses|gradient|input|mask|pca_|pic\d|stanford|Windows)",
    ),
    "python3-skimage": Source(
        "usr/lib/python3/dist-packages/skimage/data",
        take="/(astronaut|camera|chelsea|coffee|coins|motorcycle_left|rocket)",
    ),
}  # gnome-backgrounds and ukui-wallpapers hold renderings and patterns only
BUDGIE = Source("backgrounds", leave_out="abstract|(valley|waves)-midnight")


# --- finding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Picture:
    """A picture to be looked at: `member` is its path inside a resource file, empty for a plain file."""

    kind: str  # "grocery", "free" or "clothing"
    origin: str  # package or repository
    path: str  # below the origin's root
    member: str = ""

    @property
    def source(self) -> str:
        return f"{self.origin}:{self.path}{self.member and ':' + self.member}"


@functools.lru_cache(maxsize=2)
def _resources(path: Path) -> dict[str, bytes]:
    return dict(read_qres(path.read_bytes()))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def find_free(root: Path, origin: str, source: Source) -> list[Picture]:
    """The pictures below `root / source.folder`, resource files opened; links are skipped (copies in other sizes)."""
    found = []
    for file in sorted((root / source.folder).rglob("*")):
        if file.is_symlink() or not file.is_file():
            continue
        path = file.relative_to(root).as_posix()
        if _is_picture(path):
            found.append(Picture("free", origin, path))
        elif file.suffix == ".rcc":
            found += [Picture("free", origin, path, member) for member in _resources(file) if _is_picture(member)]
    return [p for p in found if re.search(source.take, p.source) and not re.search(source.leave_out, p.source)]


def find_grocery(root: Path) -> list[Picture]:
    """The pictures of the train and val lists. The labels beside the paths are dropped here."""
    lists = [root / "dataset" / name for name in ("train.txt", "val.txt")]
    lines = [line for path in lists for line in path.read_text().splitlines() if line.strip()]
    return [Picture("grocery", "GroceryStoreDataset", "dataset/" + line.split(",")[0].strip()) for line in lines]


def find_clothing(root: Path) -> list[Picture]:
    """The pictures of the clothing dataset; its table of labels is not opened."""
    files = sorted((root / "images").glob("*.jpg"))
    return [Picture("clothing", "clothing-dataset", file.relative_to(root).as_posix()) for file in files]


# --- looking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """A picture after looking at it: why it is left out (empty: it stays), or what is to be written."""

    picture: Picture
    reason: str
    jpeg: bytes = b""
    size: tuple[int, int] = (0, 0)
    original_size: tuple[int, int] = (0, 0)
    print: bytes = b""


def fingerprint(image: Image.Image) -> bytes:
    """256 bits: is each of 16×17 grey cells darker than its right neighbour? Size and compression hardly matter."""
    cells = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def has_transparency(image: Image.Image) -> bool:
    """Whether any pixel is not fully opaque (an alpha channel that is opaque everywhere does not count)."""
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    return False


def why_not(image: Image.Image) -> str:
    """Why an opaque RGB picture is no photograph for the corpus; empty when it may be one.

    Three simple rules: too little contrast; too many pixels of exactly one colour (white or black ground, fills); too
    many pixels that equal their right and lower neighbours (drawings without a main colour). Photographs stay below
    because of noise and shading, clear skies included; a few on a plain ground are lost, which hold little to learn.
    """
    pixels = np.asarray(image, dtype=np.int32)
    grey = pixels.mean(axis=2)
    if grey.std() < 12:
        return "nearly flat"
    colours = pixels @ np.array([65536, 256, 1])
    if np.unique(colours, return_counts=True)[1].max() > 0.15 * colours.size:
        return "plain ground, drawing or screenshot"
    steps = np.abs(np.diff(grey, axis=1))[:-1] + np.abs(np.diff(grey, axis=0))[:, :-1]
    if (steps < 0.7).mean() > 0.65:
        return "drawing or rendering"
    return ""


def _open(picture: Picture, root: Path) -> tuple[Image.Image, bytes]:
    file = root / picture.path
    blob = _resources(file)[picture.member] if picture.member else file.read_bytes()
    return Image.open(io.BytesIO(blob)), blob


def look(task: tuple[Picture, Path]) -> Looked:
    """Opens one picture, judges it, and makes its JPEG (files that need no change keep their bytes)."""
    picture, root = task
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image, blob = _open(picture, root)
            original = image.size
            if has_transparency(image):
                return Looked(picture, "transparency")
            if min(original) < MIN_SIDE:
                return Looked(picture, "small")
            if max(original) > MAX_ASPECT * min(original):
                return Looked(picture, "long")
            plain = (image.format, image.mode, image.getexif().get(274, 1)) == ("JPEG", "RGB", 1)
            image.draft("RGB", (4 * SHORT_SIDE, 4 * SHORT_SIDE))
            if image.mode.startswith(("I", "F")):
                return Looked(picture, "more than 8 bits a channel")
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Looked(picture, f"unreadable ({type(error).__name__})")
    scale = SHORT_SIDE / min(original)
    if scale < 1:
        width, height = (max(1, round(side * SHORT_SIDE / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    reason = why_not(image) if picture.kind == "free" else ""
    if reason:
        return Looked(picture, reason)
    if scale < 1 or not plain:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=92, subsampling=0)
        blob = out.getvalue()
    return Looked(picture, "", blob, image.size, original, fingerprint(image))


# --- splitting --------------------------------------------------------------------------------------------------------


def series(picture: Picture) -> str:
    """The name of the series a picture belongs to.

    A wallpaper's folder holds one motif in several shapes; files that differ in their last number or in a trailing mark
    (`-dark`, `_left`, `aloeL`) are cuts or takes of one motif. Photographs of the other kinds stand alone.
    """
    name = f"{picture.origin}:{picture.member or picture.path}"
    if picture.kind != "free":
        return name
    if (wallpaper := re.search(r"^.*/wallpapers/[^/]+", name)) is not None:
        return wallpaper.group()
    return re.sub(r"([-_]?\d+(x\d+)?|[-_](l|d|left|right|dark|light)|(?<=[a-z])[ABLR])?\.\w+$", "", name)


def group_alike(prints: Sequence[bytes], names: Sequence[str], limit: int) -> list[int]:
    """A group number each: one name, or fingerprints at most `limit` bits apart (chains count), make one group."""
    bits = np.unpackbits(np.frombuffer(b"".join(prints), np.uint8).reshape(len(prints), -1), axis=1).astype(np.float32)
    signs = 2 * bits - 1
    parent = list(range(len(prints)))

    def top(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, name in enumerate(names):
        parent[top(index)] = top(first.setdefault(name, index))
    for index in range(len(prints)):
        distance = (signs.shape[1] - signs[index] @ signs[index + 1 :].T) / 2
        for other in np.flatnonzero(distance <= limit):
            parent[top(index + 1 + int(other))] = top(index)
    return [top(index) for index in range(len(prints))]


def is_held_out(name: str, seed: int, share: float) -> bool:
    """Whether a group goes to the held-out side: a hash of seed and name, whatever the other files are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def drop_copies(looked: list[Looked]) -> tuple[list[Looked], list[Looked]]:
    """Keeps the largest of each set of free pictures that are the same; returns (kept, copies)."""
    free = sorted(
        (item for item in looked if item.picture.kind == "free"),
        key=lambda item: (-item.original_size[0] * item.original_size[1], item.picture),
    )
    groups = group_alike([item.print for item in free], [item.picture.source for item in free], SAME_PICTURE)
    seen: set[int] = set()
    copies = []
    for item, group in zip(free, groups, strict=True):
        if group in seen:
            copies.append(item)
        seen.add(group)
    gone = {item.picture for item in copies}
    return [item for item in looked if item.picture not in gone], copies


def split(looked: Sequence[Looked], seed: int, share: float) -> list[bool]:
    """For each picture, whether it is held out; alike pictures and series stay together."""
    if not looked:
        return []
    groups = group_alike([item.print for item in looked], [series(item.picture) for item in looked], ALIKE)
    # The first name, clothing last: so that these, which joined later, move no other photograph to the other side.
    names: dict[int, tuple[bool, str]] = {}
    for item, group in zip(looked, groups, strict=True):
        name = (item.picture.kind == "clothing", item.picture.source)
        names[group] = min(names.get(group, name), name)
    log.info("%d groups of alike pictures, the largest of %d", len(names), max(Counter(groups).values()))
    return [is_held_out(names[group][1], seed, share) for group in groups]


# --- the whole --------------------------------------------------------------------------------------------------------


def read_excludes(path: Path | None) -> list[str]:
    """The series named in lines `ORIGIN:PATH` or `ORIGIN:PATH:MEMBER` (as in corpus.json); `#` starts a comment."""
    lines = path.read_text().splitlines() if path else []
    entries = [entry.split(":") for line in lines if (entry := line.split("#")[0].strip())]
    return [series(Picture("free", *entry)) for entry in entries]


def drop_excluded(looked: list[Looked], excludes: Sequence[str]) -> tuple[list[Looked], list[Looked]]:
    """Takes away the excluded series, and whatever looks like a picture of them; returns (kept, excluded)."""
    named = [item.picture.kind == "free" and series(item.picture) in excludes for item in looked]
    missing = set(excludes) - {series(item.picture) for item in looked}
    if missing:
        log.warning("excluded, but not among the pictures: %s", ", ".join(sorted(missing)))
    groups = group_alike([item.print for item in looked], [item.picture.source for item in looked], ALIKE)
    gone = {group for group, is_named in zip(groups, named, strict=True) if is_named}
    kept = [item for item, group in zip(looked, groups, strict=True) if group not in gone]
    return kept, [item for item, group in zip(looked, groups, strict=True) if group in gone]


def version_of(root: Path, package: str) -> str:
    """The version of an unpacked Debian package, from its change log; of a clone, its commit; else empty."""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        log_file = root / "usr/share/doc" / package / name
        if log_file.is_file():
            with gzip.open(log_file, "rt", errors="replace") as lines:
                found = re.match(r"\S+ \(([^)]+)\)", lines.readline())
            if found:
                return found.group(1)
    return commit_of(root) if (root / ".git").exists() else ""


def commit_of(root: Path) -> str:
    """The commit checked out at `root`; empty where git knows none."""
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def write(out: Path, looked: Sequence[Looked], held_out: Sequence[bool]) -> list[dict[str, object]]:
    """Writes the JPEG files; returns their records for corpus.json."""
    records: list[dict[str, object]] = []
    for item, held in zip(looked, held_out, strict=True):
        place = Path("heldout" if held else "train") / item.picture.kind
        (out / place).mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"\W+", "_", Path(item.picture.member or item.picture.path).stem)
        name = f"{stem}-{hashlib.sha256(item.picture.source.encode()).hexdigest()[:8]}.jpg"
        (out / place / name).write_bytes(item.jpeg)
        records.append(
            {
                "path": (place / name).as_posix(),
                "split": place.parts[0],
                "origin": item.picture.origin,
                "source": item.picture.source,
                "size": item.size,
                "original_size": item.original_size,
                "sha256": hashlib.sha256(item.jpeg).hexdigest(),
            }
        )
    return sorted(records, key=lambda record: str(record["path"]))


def build(args: argparse.Namespace) -> dict[str, object]:
    """Finds, looks, splits and writes; returns what corpus.json says."""
    roots = {"GroceryStoreDataset": args.grocery}
    pictures = find_grocery(args.grocery)
    for package, source in PACKAGES.items():
        if (args.debian / package).is_dir():
            roots[package] = args.debian / package
            pictures += find_free(roots[package], package, source)
        else:
            log.warning("%s: not below %s, left out", package, args.debian)
    if args.budgie:
        roots["budgie-backgrounds"] = args.budgie
        pictures += find_free(args.budgie, "budgie-backgrounds", BUDGIE)
    if args.clothing:
        roots["clothing-dataset"] = args.clothing
        pictures += find_clothing(args.clothing)
    log.info("looking at %d pictures", len(pictures))
    with multiprocessing.Pool(args.workers) as pool:
        everything = pool.map(look, [(picture, roots[picture.origin]) for picture in pictures], chunksize=16)
    left_out = Counter(f"{item.picture.origin}: {item.reason}" for item in everything if item.reason)
    looked, excluded = drop_excluded([item for item in everything if not item.reason], read_excludes(args.exclude))
    looked, copies = drop_copies(looked)
    left_out.update(f"{item.picture.origin}: copy of another" for item in copies)
    records = write(args.out, looked, split(looked, args.seed, args.held_out))
    counts = Counter("/".join(str(record["path"]).split("/")[:2]) for record in records)
    revisions = dict(entry.split("=", 1) for entry in args.revision)
    return {
        "title": "Unlabelled photographs of the shipped context-prediction models",
        "made_by": {"script": "weights/corpus.py", "commit": commit_of(Path(__file__).parent), "seed": args.seed},
        "digest": hashlib.sha256("".join(f"{r['path']} {r['sha256']}\n" for r in records).encode()).hexdigest(),
        "counts": dict(sorted(counts.items())),
        "origins": {
            origin: {
                "version": revisions.get(origin) or version_of(root, origin),
                "files": sum(record["origin"] == origin for record in records),
            }
            for origin, root in roots.items()
        },
        "evaluation_sets_inside": {
            "GroceryStoreDataset": "all images of train.txt and val.txt, without their labels; none of test.txt",
            "gcompris categorization.rcc": sum("/categorization.rcc:" in str(r["source"]) for r in records),
            "gcompris explore_monuments.rcc": sum("/explore_monuments.rcc:" in str(r["source"]) for r in records),
        },
        "excluded": sorted(item.picture.source for item in excluded),
        "left_out": dict(sorted(left_out.items())),
        "files": records,
    }


def main() -> None:
    """Parses the command line, builds, writes corpus.json."""
    parser = argparse.ArgumentParser(description="Build the unlabelled corpus of the shipped model.")
    parser.add_argument("--debian", type=Path, required=True, help="folder with one unpacked Debian package a folder")
    parser.add_argument("--grocery", type=Path, required=True, help="clone of marcusklasson/GroceryStoreDataset")
    parser.add_argument("--budgie", type=Path, help="clone of BuddiesOfBudgie/budgie-backgrounds")
    parser.add_argument("--clothing", type=Path, help="clone of alexeygrigorev/clothing-dataset")
    parser.add_argument("--exclude", type=Path, help="list of sources to leave out, with what looks like them")
    parser.add_argument("--revision", action="append", default=[], metavar="ORIGIN=COMMIT", help="where no .git tells")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the photographs held out (default .1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is new or empty")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.out.is_dir() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    args.out.mkdir(parents=True, exist_ok=True)
    corpus = build(args)
    (args.out / "corpus.json").write_text(json.dumps(corpus, indent=1, ensure_ascii=False) + "\n")
    log.info("%s", json.dumps({key: corpus[key] for key in ("counts", "left_out", "digest")}, indent=1))


if __name__ == "__main__":
    main()
