"""Pairs of images and masks in folders: found, named, read, resized, cached and checked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import write_camvid
from PIL import Image
from torchvision.transforms.v2 import functional as F

from apd.data.image_folder import FolderDataset, names_of, pair_folders
from apd.data.images import DataError
from apd.data.specs import CAMVID, SegmentationDataset


@pytest.fixture
def pairs(tmp_path):
    """Three pairs that a test may damage."""
    root = write_camvid(tmp_path / "few", counts={"train": 3}, height=40, width=64)
    return pair_folders(root / "train", root / "trainannot")


def test_a_pair_comes_back_as_stored_with_void_ignored_and_a_plain_loop_ends(pairs):
    dataset = FolderDataset(CAMVID, pairs)
    assert isinstance(dataset, SegmentationDataset)
    for (image_path, mask_path), (image_3HW, labels_HW, name) in zip(pairs, dataset, strict=True):
        mask_HW = np.asarray(Image.open(mask_path))
        assert (mask_HW == 11).any()
        assert image_3HW.dtype == labels_HW.dtype == torch.uint8
        assert np.array_equal(image_3HW.permute(1, 2, 0), np.asarray(Image.open(image_path)))
        assert np.array_equal(labels_HW, np.where(mask_HW == 11, 255, mask_HW))
        assert name == image_path.stem
    assert dataset[-1].name == dataset[2].name


def pixels_under_centres(length, new_length):
    """Source pixels that hold the new pixels' centres, in whole numbers; two answers where a centre is on a border."""
    twice = (2 * np.arange(new_length) + 1) * length
    return twice // (2 * new_length), (twice - 1) // (2 * new_length)


@pytest.mark.parametrize(("height", "width"), [(20, 32), (30, 50), (80, 100)])
def test_resizing_is_antialiased_for_images_and_invents_no_label(pairs, height, width):
    whole, resized = FolderDataset(CAMVID, pairs)[0], FolderDataset(CAMVID, pairs, height=height, width=width)[0]
    assert resized.image_3HW.shape == (3, height, width)
    reference = F.resize(whole.image_3HW, [height, width], antialias=True)
    assert (resized.image_3HW.int() - reference.int()).abs().max() <= 1
    under_centre = np.zeros((height, width), dtype=bool)
    for rows in pixels_under_centres(40, height):
        for columns in pixels_under_centres(64, width):
            under_centre |= resized.labels_HW.numpy() == whole.labels_HW.numpy()[np.ix_(rows, columns)]
    assert under_centre.all()


def test_the_cache_changes_no_pixel_and_cannot_be_damaged_by_a_caller(pairs):
    cached, read = FolderDataset(CAMVID, pairs), FolderDataset(CAMVID, pairs, cache=False)
    cached[1].image_3HW.zero_(), cached[1].labels_HW.zero_()
    for one, other in zip(cached, read, strict=True):
        assert torch.equal(one.image_3HW, other.image_3HW)
        assert torch.equal(one.labels_HW, other.labels_HW)


def test_the_fingerprint_changes_with_any_content_name_or_size_and_only_then(pairs):
    def fingerprint(pairs, **options):
        return FolderDataset(CAMVID, pairs, **options).fingerprint()

    seen = [fingerprint(pairs), fingerprint(pairs, cache=False)]
    seen += [fingerprint(pairs[::-1]), fingerprint(pairs[:2]), fingerprint(pairs, height=20, width=32)]
    renamed = [tuple(path.rename(path.with_stem("other")) for path in pairs[0]), *pairs[1:]]
    seen.append(fingerprint(renamed))
    mask = np.asarray(Image.open(pairs[2][1])).copy()
    mask[0, 0] = (mask[0, 0] + 1) % 11
    Image.fromarray(mask).save(pairs[2][1])
    seen.append(fingerprint(renamed))
    assert (seen[0] == seen[1], len(set(seen)), len(seen[0])) == (True, 6, 64)


def test_what_does_not_fit_is_read_when_it_is_asked_for(pairs, monkeypatch):
    monkeypatch.setattr("apd.data.image_folder.CACHE_BYTES", 4 * 40 * 64 * 2)  # two of the three
    read, small = (FolderDataset(CAMVID, pairs, **size, cache=None) for size in ({}, {"height": 20, "width": 32}))
    for path, _ in pairs:
        path.write_bytes(b"")
    assert len(list(small)) == 3
    with pytest.raises(DataError, match="damaged or truncated"):
        read[0]


def test_what_cannot_be_meant_is_refused_by_file_even_where_resizing_would_drop_it(pairs):
    mask = np.asarray(Image.open(pairs[1][1])).copy()
    mask[:2, :3], mask[5, 5] = 12, 254
    Image.fromarray(mask).save(pairs[1][1])
    with pytest.raises(DataError, match=r"_000030.png holds the label values 12 \(6 pixels\), 254 \(1 .*0..10"):
        FolderDataset(CAMVID, pairs, height=4, width=6)
    read_later = FolderDataset(CAMVID, pairs, cache=False)
    assert read_later[0].name == pairs[0][0].stem
    with pytest.raises(DataError, match="254"):
        read_later[1]
    Image.new("L", (32, 40)).save(pairs[1][1])
    with pytest.raises(DataError, match=rf"{pairs[1][0].name} is 64×40 .* {pairs[1][1]} 32×40; .*same size"):
        FolderDataset(CAMVID, pairs, height=20, width=32)
    with pytest.raises(DataError, match="no image/mask pairs for camvid"):
        FolderDataset(CAMVID, [])
    for height, width in ((20, None), (None, 20), (0, 20), (20, -1)):
        with pytest.raises(ValueError, match=f"height={height} and width={width}"):
            FolderDataset(CAMVID, pairs, height=height, width=width)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/1.png", "y/1.png", "z/2.png"], ["x/1", "y/1", "z/2"]),
        (["1.png", "1.bmp"], ["1.png", "1.bmp"]),
        (["A/1.png", "a/1.png"], ["A/1.png-1", "a/1.png-2"]),
        (["x/y-1.png", "x-y/1.png", "x/1.png"], ["x/y-1", "x-y/1", "x/1"]),
        (["../../1.png", "y/../1.png"], None),
        (["/1.png", "/x/1.png"], ["1", "x/1"]),
        (["a.png", "a.png"], ["a.png-1", "a.png-2"]),
        (["t\u00fcr.png", "x/tu\u0308r.png"], ["t\u00fcr", "x/tu\u0308r"]),
    ],
)
def test_names_differ_on_any_file_system_and_stay_in_the_folder_they_are_joined_to(paths, names):
    made = names_of([Path(path) for path in paths])
    assert names is None or made == names
    assert len({name.casefold() for name in made}) == len(paths)
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in made)
