"""Image files and masks of every kind mean the same wherever they are read; pairs of them are found and checked."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import refused
from image_files import GREY, KINDS, MASKS, NO_IMAGES, NO_MASKS, SPEC, saved
from miniatures import write_camvid
from PIL import Image
from torchvision.transforms.v2 import functional as F

from apd.data.coco import CocoInstances
from apd.data.image_folder import FolderDataset, names_of, pair_folders
from apd.data.images import DataError, LongSide, image_size, long_side_size, read_image, read_mask, read_text
from apd.data.scenes import Scenes
from apd.data.specs import CAMVID, SegmentationDataset


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file_is_the_same_image_in_training_prediction_and_coco(tmp_path, kind):
    suffix, write, expected, tolerance = KINDS[kind]
    path, (height, width) = tmp_path / f"image.{suffix}", expected.shape[:2]
    write(path)
    seen = np.asarray(read_image(path))
    assert (seen.dtype, seen.shape) == (np.uint8, expected.shape)
    assert np.abs(seen.astype(int) - expected).mean() <= tolerance
    assert image_size(path) == (width, height)
    saved(np.zeros((height, width), np.uint8))(tmp_path / "mask.png")
    entry = {"id": 1, "file_name": path.name, "height": height, "width": width}
    content = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "soil"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    coco = CocoInstances(tmp_path / "instances.json", tmp_path)
    for data in (FolderDataset(SPEC, [(path, tmp_path / "mask.png")]), coco):
        assert np.array_equal(data[0].image_3HW.permute(1, 2, 0), seen)


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_by_name_by_every_reader(tmp_path, kind):
    suffix, write, message = NO_IMAGES[kind]
    write(path := tmp_path / f"file.{suffix}")
    saved(GREY * 0)(tmp_path / "mask.png")
    readers = [read_image, lambda path: FolderDataset(SPEC, [(path, tmp_path / "mask.png")])]
    if kind in ("nothing", "folder", "pipe", "text"):
        readers += [image_size, lambda path: read_mask(path, SPEC)]
    for read in readers:
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", MASKS)
def test_a_kind_of_mask_gives_its_labels(tmp_path, kind):
    suffix, write, spec, expected = MASKS[kind]
    write(path := tmp_path / f"mask.{suffix}")
    labels_HW = read_mask(path, spec)
    assert labels_HW.dtype == np.uint8
    assert np.array_equal(labels_HW, expected)


@pytest.mark.parametrize("kind", NO_MASKS)
def test_what_is_no_mask_is_refused_by_name(tmp_path, kind):
    suffix, write, spec, message = NO_MASKS[kind]
    write(path := tmp_path / f"mask.{suffix}")
    with pytest.raises(DataError, match=message) as caught:
        read_mask(path, spec)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_read_in_the_encodings_of_usual_editors(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("tür\na\r\nb\rc".encode(encoding))
    assert read_text(tmp_path / "list.txt").splitlines() == ["tür", "a", "b", "c"]
    for content, message in (
        ("a\nb\ntür\n".encode("latin-1"), "list.txt is not UTF-8, line 3"),
        ("ab".encode("utf-16-le"), "list.txt is not UTF-8, line 1 .*UTF-16 without its mark"),
        (b"\xff\xfea", "list.txt is not UTF-16, line 1"),
    ):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_text(tmp_path / "list.txt")


def test_images_get_the_longest_side_and_labels_keep_their_size():
    plain = Scenes(2, height=48, width=64, context_shift=0.5, seed=0)
    longer = LongSide(plain, 96)
    assert isinstance(longer, SegmentationDataset)
    assert longer.fingerprint() not in (plain.fingerprint(), LongSide(plain, 65).fingerprint())
    for one, other in zip(plain, longer, strict=True):
        assert other.image_3HW.shape == (3, 72, 96)
        assert torch.equal(one.labels_HW, other.labels_HW)
        assert one.name == other.name
    sizes = [long_side_size(*size, 512) for size in ((512, 683), (8, 8), (1, 3000))]
    assert sizes == [(384, 512), (512, 512), (1, 512)]
    refused(lambda: long_side_size(0, 4, 512), ValueError, names=("height=0, width=4, long_side=512", "at least 1"))
    refused(lambda: LongSide(plain, 0)[0], ValueError, names=("long_side=0",))


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


def test_the_cache_changes_no_pixel_cannot_be_damaged_by_a_caller_and_holds_no_more_than_fits(pairs, monkeypatch):
    cached, read = FolderDataset(CAMVID, pairs), FolderDataset(CAMVID, pairs, cache=False)
    cached[1].image_3HW.zero_(), cached[1].labels_HW.zero_()
    for one, other in zip(cached, read, strict=True):
        assert torch.equal(one.image_3HW, other.image_3HW)
        assert torch.equal(one.labels_HW, other.labels_HW)
    monkeypatch.setattr("apd.data.image_folder.CACHE_BYTES", 4 * 40 * 64 * 2)  # two of the three
    read, small = (FolderDataset(CAMVID, pairs, cache=None, **size) for size in ({}, {"height": 20, "width": 32}))
    for path, _ in pairs:
        path.write_bytes(b"")
    assert len(list(small)) == 3
    refused(lambda: read[0], DataError, names=("damaged or truncated",))


def test_the_fingerprint_changes_with_any_content_name_or_size_and_only_then(pairs):
    def fingerprint(pairs, **options):
        return FolderDataset(CAMVID, pairs, **options).fingerprint()

    seen = [fingerprint(pairs), fingerprint(pairs, cache=False)]
    seen += [fingerprint(pairs[::-1]), fingerprint(pairs[:2]), fingerprint(pairs, height=20, width=32)]
    renamed = [tuple(path.rename(path.with_stem("other")) for path in pairs[0]), *pairs[1:]]
    seen.append(fingerprint(renamed))
    mask = Image.open(pairs[2][1])
    mask.putpixel((0, 0), (mask.getpixel((0, 0)) + 1) % 11)
    mask.save(pairs[2][1])
    seen.append(fingerprint(renamed))
    assert (seen[0] == seen[1], len(set(seen)), len(seen[0])) == (True, 6, 64)


def test_what_cannot_be_meant_is_refused_by_file_even_where_resizing_would_drop_it(pairs):
    mask = np.asarray(Image.open(pairs[1][1])).copy()
    mask[:2, :3], mask[5, 5] = 12, 254
    Image.fromarray(mask).save(pairs[1][1])
    message = ("_000030.png holds the label values 12 (6 pixels), 254 (1 ", "0..10")
    refused(lambda: FolderDataset(CAMVID, pairs, height=4, width=6), DataError, names=message)
    Image.new("L", (32, 40)).save(pairs[1][1])
    message = (f"{pairs[1][0].name} is 64×40 ", f"{pairs[1][1]} 32×40; ")
    refused(lambda: FolderDataset(CAMVID, pairs, height=20, width=32), DataError, names=message)
    refused(lambda: FolderDataset(CAMVID, []), DataError, names=("no image/mask pairs for camvid",))
    for size in (dict(height=20, width=None), dict(height=0, width=20), dict(height=20, width=-1)):
        refused(partial(FolderDataset, CAMVID, pairs, **size), ValueError, names=(f"height={size['height']} and wi",))


def test_names_differ_on_any_file_system_and_stay_in_the_folder_they_are_joined_to():
    for paths, names in (
        (["x/1.png", "y/1.png", "z/2.png"], ["x/1", "y/1", "z/2"]),
        (["1.png", "1.bmp"], ["1.png", "1.bmp"]),
        (["A/1.png", "a/1.png"], ["A/1.png-1", "a/1.png-2"]),
        (["x/y-1.png", "x-y/1.png", "x/1.png"], ["x/y-1", "x-y/1", "x/1"]),
        (["../../1.png", "y/../1.png"], None),
        (["/1.png", "/x/1.png"], ["1", "x/1"]),
        (["a.png", "a.png"], ["a.png-1", "a.png-2"]),
        (["t\u00fcr.png", "x/tu\u0308r.png"], ["t\u00fcr", "x/tu\u0308r"]),
    ):
        made = names_of([Path(path) for path in paths])
        assert made == (names or made)
        assert len({name.casefold() for name in made}) == len(paths)
        assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in made)
