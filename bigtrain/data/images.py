"""Images with a class each: IDX files as of MNIST, or a folder of folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.examples import Arrays, check_split
from bigtrain.data.order import EpochOrder, Integers, Order
from bigtrain.data.sources import holds_no_run
from bigtrain.data.tables import split_rows
from bigtrain.errors import UserError, nearest_path

VERSION = 1
KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
IDX = {"train": ("train-images", "train-labels"), "eval": ("t10k-images", "t10k-labels")}


@dataclass(kw_only=True)
class Images:
    """A data component: images (C, H, W) of one size, float32 and centred, and their classes.

    Of IDX files (`train-images…`, `train-labels…`, as MNIST has them, also .gz) the `t10k-…` pair is held out where it
    is there. In a folder of folders, each holds the images of one class and gives it its name; `train/` and `test/` may
    stand above them. Needs Pillow for images that are not IDX.
    """

    path: str
    image_size: int | None = None
    """Height and width in pixels; null: that of the images, which then must all have one size."""
    channels: int = 1
    """1: grey; 3: colours."""
    shift: int = 0
    """In training an image is moved by up to so many pixels in each direction, anew in each epoch."""
    flip: bool = False
    """In training, half of the images are mirrored left to right, anew in each epoch."""
    held_out: float = 0.1
    """Share of each class kept for evaluation, where there is no set of its own for that."""
    folds: int | None = None
    """Cross-validation: the training images are cut into so many parts, and the part of index `fold` is held out."""
    fold: int | None = None
    max_images: int | None = None
    """Of the training images; those of a set of its own for evaluation are all taken."""
    seed: int = 0
    cache: str = "runs/prepared"

    def __post_init__(self) -> None:
        check_split(self.held_out, self.folds, self.fold)
        for name, size in ("max_images", self.max_images), ("image_size", self.image_size):
            if size is not None and size < 1:
                raise UserError(f"data.{name}={size}: at least 1.")
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: 1 (grey) or 3 (colours).")

    @cached_property
    def folder(self) -> Path:
        """Where the arrays lie, or will lie."""
        told = asdict(self)
        for name in ("path", "cache", "shift", "flip"):
            del told[name]
        here = Path(self.path).expanduser()
        if not here.is_dir():
            raise UserError(
                f"data.path={self.path}: there is no such folder; images lie in one.{nearest_path(here, holds_no_run)}"
            )
        files = [[str(file.relative_to(here)), file.stat().st_size, file.stat().st_mtime_ns]
                 for file in sorted(here.rglob("*")) if file.is_file()]  # fmt: skip
        digest = hashlib.sha256(json.dumps([VERSION, told, files], sort_keys=True).encode()).hexdigest()[:16]
        return Path(self.cache).expanduser() / f"images-{digest}"

    @property
    def shape(self) -> tuple[int, int] | None:
        """(channels, height and width in pixels) of the images, before all are read; None: they are not square."""
        here = Path(self.path).expanduser()
        if not here.is_dir():
            return None
        if files := _idx_files(here, IDX["train"]):
            sizes = [*_idx_shape(files[0])[1:], 1][:3]
        elif self.image_size:
            return self.channels, self.image_size
        else:
            file = next((file for file in here.rglob("*") if file.suffix.lower() in KINDS), None)
            sizes = [] if file is None else list(_picture(file, None, self.channels).shape)
        return (sizes[2], sizes[0]) if len(sizes) == 3 and sizes[0] == sizes[1] else None

    def prepare(self) -> None:
        """Reads and splits the images, unless that has been done.

        Raises:
            UserError: there are none, a file is damaged, or an image has another size.
        """
        if (self.folder / "info.json").is_file():
            print(f"data: prepared already, in {self.folder}", file=sys.stderr)
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        try:
            self._write(scratch)
            try:
                scratch.rename(self.folder)
            except OSError:
                if not (self.folder / "info.json").is_file():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @property
    def train(self) -> Pictures:
        """The training images."""
        return self._open("train", self.shift, self.flip)

    @property
    def eval(self) -> Pictures | None:
        """The held-out images; None: none are held out."""
        return self._open("eval", 0, False) if self._info["images"]["eval"] else None

    @property
    def classes(self) -> int:
        """So many that a head needs."""
        return len(self.label_names)

    @property
    def label_names(self) -> list[str]:
        """Of the classes, in the order of their numbers."""
        names: list[str] = self._info["label_names"]
        return names

    @property
    def fingerprint(self) -> str:
        """A hash of the training images."""
        return str(self._info["fingerprint"])

    @cached_property
    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.folder / "info.json").read_text(encoding="utf-8"))
        return info

    def _open(self, split: str, shift: int, flip: bool) -> Pictures:
        images, labels = (np.load(self.folder / f"{split}_{of}.npy", mmap_mode="r") for of in ("images", "labels"))
        return Pictures(images, labels, self._info["mean"], self._info["std"], shift, flip, self.seed)

    def _write(self, folder: Path) -> None:
        here = Path(self.path).expanduser()
        found = _idx(here) or _folders(here, self.image_size, self.channels)
        images, labels, names = found["train"]
        images, labels = images[: self.max_images], labels[: self.max_images]
        if "eval" in found and self.folds is None:
            sides = {"train": (images, labels), "eval": found["eval"][:2]}
        else:
            keys = [hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in images]
            held = split_rows(keys, labels.tolist(), self.held_out, self.folds, self.fold, self.seed)
            sides = {"train": (images[~held], labels[~held]), "eval": (images[held], labels[held])}
        size = self.image_size or images.shape[1]
        for pixels, _ in sides.values():
            if pixels.shape[1:3] != (size, size):
                raise UserError(
                    f"data.path={self.path}: the images are {pixels.shape[1]} x {pixels.shape[2]}, not "
                    f"{size} x {size}: set data.image_size, and model.image_size with it."
                )
        own = np.asarray(sides["train"][0])
        for split, (pixels, numbers) in sides.items():
            np.save(folder / f"{split}_images.npy", pixels)
            np.save(folder / f"{split}_labels.npy", numbers.astype(np.int64))
        counts = {split: len(numbers) for split, (_, numbers) in sides.items()}
        info = {
            "images": counts,
            "label_names": names,
            "mean": [float(own[..., channel].mean() / 255) for channel in range(own.shape[3])],
            "std": [float(max(own[..., channel].std() / 255, 1e-3)) for channel in range(own.shape[3])],
            "fingerprint": hashlib.sha256(own.tobytes()).hexdigest()[:16],
        }
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        of = f"{counts['train']:,} training images, {counts['eval']:,} held out"
        print(f"data: {of}, in {self.folder}", file=sys.stderr)


class Pictures:
    """Images in memory maps. In training they are moved and mirrored, by (seed, epoch, image) alone: whatever the
    number of ranks and however often a run was stopped, an image of an epoch looks the same."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        shift: int,
        flip: bool,
        seed: int,
    ) -> None:
        self.images, self.labels = images, labels
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._shift, self._flip, self._seed = shift, flip, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Arrays:
        """One image."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | Integers) -> Arrays:
        """`images` (B, C, H, W) float32 and `labels` (B,) of epoch · n + number, see `EpochOrder`."""
        epochs, numbers = np.divmod(np.asarray(indices, np.int64), len(self))
        found = np.asarray(self.images[numbers]).astype(np.float32) / 255
        images = ((found - self._mean) / self._std).transpose(0, 3, 1, 2)
        if self._shift or self._flip:
            images = np.stack([self._moved(*each) for each in zip(images, epochs, numbers, strict=True)])
        return {"images": np.ascontiguousarray(images), "labels": np.asarray(self.labels[numbers])}

    def order(self, seed: int) -> EpochOrder:
        """The order of training."""
        return EpochOrder(Order(len(self), seed), len(self))

    def _moved(self, image: NDArray[np.float32], epoch: int, number: int) -> NDArray[np.float32]:
        chance = np.random.default_rng([self._seed, int(epoch), int(number)])
        if self._flip and chance.random() < 0.5:
            image = image[..., ::-1]
        down, right = chance.integers(-self._shift, self._shift + 1, 2)
        wide = np.pad(image, ((0, 0), (self._shift,) * 2, (self._shift,) * 2), mode="edge")
        top, left = self._shift + down, self._shift + right
        return wide[:, top : top + image.shape[1], left : left + image.shape[2]]


Found = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]]


def _idx(folder: Path) -> Found:
    """The IDX pairs in a folder; empty where there is none."""
    found: Found = {}
    for split, stems in IDX.items():
        files = _idx_files(folder, stems)
        if files is None:
            continue
        images, labels = map(read_idx, files)
        if len(images) != len(labels):
            raise UserError(f"{files[0]} has {len(images)} images and {files[1]} {len(labels)} labels.")
        classes = [str(number) for number in range(int(labels.max()) + 1)]
        found[split] = (images[..., None] if images.ndim == 3 else images, labels.astype(np.int64), classes)
    if "eval" in found and len(found["eval"][2]) > len(found["train"][2]):
        raise UserError(f"data.path={folder}: the held-out images have classes that the training images lack.")
    return found if "train" in found else {}


def _idx_files(folder: Path, stems: Sequence[str]) -> list[Path] | None:
    """The files of images and of labels; None where one is missing."""
    names = sorted(folder.iterdir())
    found = [file for stem in stems for file in [next((f for f in names if f.name.startswith(stem)), None)] if file]
    return found if len(found) == len(stems) else None


def _idx_shape(file: Path) -> tuple[int, ...]:
    """The sizes that an IDX file tells, the number of values first; empty: it is none."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        head = opened.read(4)
        return tuple(np.frombuffer(opened.read(4 * head[3]), ">u4").tolist()) if head[:3] == b"\0\0\x08" else ()


def read_idx(file: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes (LeCun's format: two zeros, the type, the number of dimensions, their sizes, the values)."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{file} is no IDX file of bytes.")
    shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
    start = 4 + 4 * data[3]
    if len(data) - start != int(np.prod(shape)):
        raise UserError(f"{file} is cut: it tells {' x '.join(map(str, shape))} values, and has {len(data) - start}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _folders(folder: Path, size: int | None, channels: int) -> Found:
    places = {"train": folder / "train", "eval": folder / "test"}
    if not places["train"].is_dir():
        places = {"train": folder}
    names = [entry.name for entry in sorted(places["train"].iterdir()) if entry.is_dir()]
    if not names:
        raise UserError(f"data.path={folder} holds neither IDX files (train-images…) nor a folder for each class.")
    found: Found = {}
    for split, place in places.items():
        if not place.is_dir():
            continue
        files = [(file, number) for number, name in enumerate(names) for file in sorted((place / name).rglob("*"))
                 if file.suffix.lower() in KINDS]  # fmt: skip
        if not files:
            raise UserError(f"The folders in {place} hold no image ({', '.join(KINDS)}).")
        images = [_picture(file, size, channels) for file, _ in files]
        for (file, _), image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise UserError(
                    f"{file} is {image.shape[1]} x {image.shape[0]} pixels, and {files[0][0].name} "
                    f"{images[0].shape[1]} x {images[0].shape[0]}: set data.image_size, to which all are made."
                )
        found[split] = (np.stack(images), np.array([number for _, number in files], np.int64), names)
    return found


def _picture(file: Path, size: int | None, channels: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError("Images need Pillow: pip install 'bigtrain[images]'.") from error
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
            image = image.resize((size, size)) if size else image
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is no image that can be read: {error}") from error
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
