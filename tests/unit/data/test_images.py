"""Images: IDX files and folders, the same picture of an epoch whatever the ranks, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.data import Images
from bigtrain.data.images import read_idx
from bigtrain.data.loader import batches
from bigtrain.errors import UserError
from tests.distributed.tasks import write_digits


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_digits(tmp_path / "digits")
    return tmp_path / "digits"


def images(path: Path, **changes: Any) -> Images:
    data = Images(path=str(path), cache=str(path.parent / "cache"), **changes)
    data.prepare()
    return data


def test_the_digits_are_what_they_were(digits: Path) -> None:
    from sklearn.datasets import load_digits

    data, right = images(digits), load_digits()
    assert (len(data.train), len(data.eval or ())) == (1500, 297) and data.label_names == list("0123456789")
    batch = data.train.batch([3, 7])
    assert batch["images"].dtype == np.float32 and batch["images"].shape == (2, 1, 8, 8)
    assert batch["labels"].tolist() == right.target[[3, 7]].tolist()
    whole = data.train.batch(range(1500))["images"]
    assert abs(whole.mean()) < 1e-4 and whole.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.corrcoef(batch["images"][0].ravel(), right.images[3].ravel())[0, 1], 1, atol=1e-4)


def test_a_number_of_images_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.image_size=0: at least 1"):
        Images(path=str(tmp_path), image_size=0)
    with pytest.raises(UserError, match="data.max_images=-3: at least 1"):
        Images(path=str(tmp_path), max_images=-3)


def test_packed_idx_files_are_the_same(digits: Path) -> None:
    before = images(digits).fingerprint
    for file in list(digits.iterdir()):
        (digits / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert images(digits).fingerprint == before


def test_a_picture_moves_with_the_epoch_and_with_nothing_else(digits: Path) -> None:
    data = images(digits, shift=2, flip=True)
    first, again, later = (data.train.batch([at])["images"] for at in (5, 5, 5 + 1500))
    assert (first == again).all() and not (first == later).all()
    assert (images(digits, shift=2).train.batch([5])["labels"] == data.train.batch([5 + 1500])["labels"]).all()
    assert (data.eval.batch([5])["images"] == images(digits).eval.batch([5])["images"]).all()  # type: ignore[union-attr]

    def seen(world: int) -> list[float]:
        ranks = [batches(data.train, seed=1, position=1480, global_batch_size=8, micro_batch_size=2, rank=rank,
                         world_size=world) for rank in range(world)]  # fmt: skip
        steps = [[next(rank)[0] for rank in ranks] for _ in range(5)]
        for rank in ranks:
            rank.close()
        return [
            float(sum(micro["images"].double().pow(3).sum() for part in parts for micro in part)) for parts in steps
        ]

    assert seen(1) == pytest.approx(seen(4))


def test_folds_hold_out_every_image_once(digits: Path) -> None:
    held = [images(digits, folds=3, fold=fold, max_images=90).eval for fold in range(3)]
    assert sum(len(one or ()) for one in held) == 90


def test_folders_of_pictures(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    for label, shade in (("dark", 20), ("light", 220)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (6, 6), (shade, shade + number, shade)).save(tmp_path / "set" / label / f"{number}.png")
    data = images(tmp_path / "set", channels=3, held_out=0.2)
    assert data.label_names == ["dark", "light"] and len(data.train) == 16 and len(data.eval or ()) == 4
    assert data.train[0]["images"].shape == (3, 6, 6)
    Image.new("RGB", (5, 6)).save(tmp_path / "set" / "dark" / "odd.png")
    with pytest.raises(UserError, match="odd.png is 5 x 6 pixels, and 0.png 6 x 6: set data.image_size"):
        images(tmp_path / "set", channels=3)
    assert images(tmp_path / "set", channels=3, image_size=4).train[0]["images"].shape == (3, 4, 4)
    (tmp_path / "set" / "dark" / "odd.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="odd.png is no image that can be read"):
        images(tmp_path / "set")


def test_what_is_no_set_of_images_is_refused(digits: Path, tmp_path: Path) -> None:
    file = digits / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="is cut: it tells 1500 x 8 x 8 values, and has 95999"):
        read_idx(file)
    file.write_bytes(b"\x01" + whole[1:])
    with pytest.raises(UserError, match="is no IDX file of bytes"):
        read_idx(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither IDX files"):
        images(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no such folder"):
        images(tmp_path / "nowhere")
    file.write_bytes(whole)
    with pytest.raises(UserError, match="the images are 8 x 8, not 28 x 28"):
        images(digits, image_size=28)
