"""Image files of every kind mean the same in training, prediction and COCO data, and their names and lists too."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    ALPHA,
    BIG,
    BLACK_WHITE,
    DEEP,
    GREY,
    GREY_ALPHA,
    OF_PALETTE,
    RGB,
    SECOND,
    SPEC,
    THREE,
    TURNED,
    exif,
    palette,
    png,
    saved,
)
from PIL import Image

from apd.data.coco import CocoInstances
from apd.data.image_folder import FolderDataset, names_of
from apd.data.images import DataError, image_size, read_mask, read_text
from apd.evaluation.predict import read_image

# suffix, writer, what is to be read, and how far lossy compression may be from it on average
KINDS = {
    "png": ("png", saved(), RGB, 0),
    "capital PNG": ("PNG", saved(format="PNG"), RGB, 0),
    "png alpha": ("png", saved(ALPHA), RGB, 0),
    "png grey": ("png", saved(GREY), THREE, 0),
    "png grey and alpha": ("png", saved(GREY_ALPHA), THREE, 0),
    "png palette": ("png", palette(), OF_PALETTE, 0),
    "png palette, transparent": ("png", palette(transparent=True), OF_PALETTE, 0),
    "png 1 bit": ("png", saved(GREY > 99), BLACK_WHITE, 0),
    "png grey of 2 bits": ("png", png(GREY // 64, 2, 0), THREE // 64 * 85, 0),
    "png grey of 4 bits": ("png", png(GREY // 16, 4, 0), THREE // 16 * 17, 0),
    "png grey of 16 bits": ("png", saved(DEEP[..., 0]), THREE, 0),
    "png grey and alpha of 16 bits": ("png", png(GREY_ALPHA.astype(np.uint16) * 256, 16, 4), THREE, 0),
    "png of 16 bits": ("png", png(DEEP, 16, 2), RGB, 0),
    "png alpha of 16 bits": ("png", png(ALPHA.astype(np.uint16) * 256, 16, 6), RGB, 0),
    "png turned after its pixels": (
        "png",
        png(RGB, 8, 2, (b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))),
        TURNED[6](RGB),
        0,
    ),
    "jpg": ("jpg", saved(BIG, quality=95), BIG, 4),
    "jpeg progressive": ("jpeg", saved(BIG, quality=95, progressive=True), BIG, 4),
    "capital JPG": ("JPG", saved(BIG, quality=95), BIG, 4),
    "jpg grey": ("jpg", saved(GREY, quality=95), THREE, 3),
    "jpg CMYK": ("jpg", saved(BIG, mode="CMYK", quality=95), BIG, 4),
    "jpg with a second image": ("jpg", saved(BIG, format="MPO", save_all=True, append_images=SECOND), BIG, 6),
    "jpg with damaged EXIF": ("jpg", saved(BIG, quality=95, exif=b"Exif\0\0no TIFF at all"), BIG, 4),
    "tif": ("tif", saved(), RGB, 0),
    "capital TIFF, LZW": ("TIFF", saved(compression="tiff_lzw"), RGB, 0),
    "tif deflate": ("tif", saved(compression="tiff_adobe_deflate"), RGB, 0),
    "tif jpeg": ("tif", saved(BIG, compression="jpeg", quality=95), BIG, 6),
    "tif alpha": ("tif", saved(ALPHA), RGB, 0),
    "tif grey": ("tif", saved(GREY), THREE, 0),
    "tif grey and alpha": ("tif", saved(GREY_ALPHA), THREE, 0),
    "tif palette": ("tif", palette(), OF_PALETTE, 0),
    "tif 1 bit, fax": ("tif", saved(GREY > 99, compression="group4"), BLACK_WHITE, 0),
    "tif CMYK": ("tif", saved(mode="CMYK"), RGB, 0),
    "tif grey of 16 bits": ("tif", saved(DEEP[..., 0]), THREE, 0),
    "tif grey of 16 bits, big end first": ("tif", saved(Image.fromarray(DEEP[..., 0].astype(">u2"))), THREE, 0),
    "bmp": ("bmp", saved(), RGB, 0),
    "bmp grey": ("bmp", saved(GREY), THREE, 0),
    "bmp palette": ("bmp", palette(), OF_PALETTE, 0),
    "bmp 1 bit": ("bmp", saved(GREY > 99), BLACK_WHITE, 0),
    "webp lossless": ("webp", saved(lossless=True), RGB, 0),
    "webp alpha": ("webp", saved(ALPHA, lossless=True, exact=True), RGB, 0),
    "webp": ("webp", saved(BIG, quality=95), BIG, 6),
    **{f"jpg turned {n}": ("jpg", saved(BIG, quality=95, exif=exif(n)), turn(BIG), 4) for n, turn in TURNED.items()},
    **{f"png turned {n}": ("png", saved(exif=exif(n)), turn(RGB), 0) for n, turn in TURNED.items()},
    **{f"tif turned {n}": ("tif", saved(exif=exif(n)), turn(RGB), 0) for n, turn in TURNED.items()},
    **{f"webp turned {n}": ("webp", saved(lossless=True, exif=exif(n)), turn(RGB), 0) for n, turn in TURNED.items()},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file_is_the_same_image_in_training_prediction_and_coco(tmp_path, kind):
    suffix, write, expected, tolerance = KINDS[kind]
    path = tmp_path / f"image.{suffix}"
    write(path)
    seen = np.asarray(read_image(path))
    assert (seen.dtype, seen.shape) == (np.uint8, expected.shape)
    assert np.abs(seen.astype(int) - expected).mean() <= tolerance
    assert image_size(path) == expected.shape[1::-1]
    Image.fromarray(np.zeros(expected.shape[:2], np.uint8)).save(tmp_path / "mask.png")
    sample = FolderDataset(SPEC, [(path, tmp_path / "mask.png")])[0]
    assert np.array_equal(sample.image_3HW.permute(1, 2, 0), seen)
    entry = {"id": 1, "file_name": path.name, "height": expected.shape[0], "width": expected.shape[1]}
    content = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "soil"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (instance,) = CocoInstances(tmp_path / "instances.json", tmp_path)
    assert np.array_equal(instance.image_3HW.permute(1, 2, 0), seen)


def half(suffix, **options):
    """The first half of a good file."""

    def write(path):
        content = io.BytesIO()
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(content, suffix, **options)
        path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])

    return write


TWO = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}
NO_IMAGES = {
    "nothing": ("png", lambda _path: None, "there is no such file"),
    "folder": ("png", lambda path: path.mkdir(), "cannot be read as an image .*a folder"),
    "pipe": ("png", lambda path: os.mkfifo(path), "cannot be read as an image .*a pipe"),
    "device": ("png", lambda path: path.symlink_to("/dev/zero"), "cannot be read as an image .*a device"),
    "text": ("jpg", lambda path: path.write_text("this is no image"), "cannot be read as an image"),
    "empty": ("png", lambda path: path.touch(), "cannot be read as an image"),
    **{
        f"half a {suffix}": (suffix, half(suffix), "cannot be read as an image .*damaged or truncated")
        for suffix in ("png", "jpeg", "bmp", "webp", "tiff")
    },
    "png of 12 bits": ("png", png(DEEP // 16, 16, 2), "16 bits a channel and no value above 16383.* save it with 8"),
    "png of 14 bits, grey": ("png", saved(DEEP[..., 0] // 4), "16 bits a channel and no value above 16383"),
    "tif of floats": ("tif", saved(GREY.astype(np.float32)), "has mode F; expected grey or colours of 8 or 16 bits"),
    "tif of 32 bits": ("tif", saved(GREY.astype(np.int32)), "has mode I; expected"),
    "tif Lab": ("tif", saved(mode="LAB"), "has mode LAB; expected"),
    "animated png": ("png", saved(**TWO), "has 2 frames; expected one"),
    "animated webp": ("webp", saved(**TWO), "has 2 frames; expected one"),
    "tif of two pages": ("tif", saved(**TWO), "has 2 frames; expected one"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_by_name_by_every_reader(tmp_path, kind):
    suffix, write, message = NO_IMAGES[kind]
    path = tmp_path / f"thing.{suffix}"
    write(path)
    saved(GREY * 0)(tmp_path / "mask.png")
    for read in (read_image, lambda path: FolderDataset(SPEC, [(path, tmp_path / "mask.png")])):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
    if kind in ("nothing", "folder", "pipe", "device", "text", "empty"):
        with pytest.raises(DataError, match=message):
            image_size(path)
        with pytest.raises(DataError, match=message):
            read_mask(path, SPEC)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    saved()(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image .*decompression bomb"):
        read_image(tmp_path / "a.png")


# --- names and texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/1.png", "y/2.jpg"], ["1", "2"]),
        (["x/1.png", "y/1.png", "z/2.png"], ["x/1", "y/1", "z/2"]),
        (["top/x/1.png", "top/y/z/1.png"], ["x/1", "y/z/1"]),
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_text_is_read_in_the_encodings_of_usual_editors(tmp_path, encoding, ending):
    (tmp_path / "list.txt").write_bytes(ending.join(["tür", "a"]).encode(encoding))
    assert read_text(tmp_path / "list.txt").splitlines() == ["tür", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\ntür\n".encode("latin-1"), "list.txt is not UTF-8, line 3"),
        ("a\r\ntür\r\n".encode("cp1252"), "list.txt is not UTF-8, line 2"),
        ("ab".encode("utf-16-le"), "list.txt is not UTF-8, line 1 .*UTF-16 without its mark"),
        (b"\xff\xfea", "list.txt is not UTF-16, line 1"),
    ],
)
def test_a_text_in_another_encoding_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "list.txt")
