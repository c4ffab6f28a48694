"""Image files and masks of every kind mean the same wherever they are read, and so do texts; and the longest side."""

import io
import json
import os
import struct

import numpy as np
import pytest
import torch
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
from apd.data.image_folder import FolderDataset
from apd.data.images import DataError, LongSide, image_size, long_side_size, read_image, read_mask, read_text
from apd.data.scenes import Scenes
from apd.data.specs import DatasetSpec, SegmentationDataset

# suffix, writer, what is to be read, and how far lossy compression may be from it on average
KINDS = {
    "png": ("png", saved(), RGB, 0),
    "png alpha": ("png", saved(ALPHA), RGB, 0),
    "png palette": ("png", palette(), OF_PALETTE, 0),
    "png palette, transparent": ("png", palette(transparent=True), OF_PALETTE, 0),
    "png 1 bit": ("png", saved(GREY > 99), BLACK_WHITE, 0),
    "png grey of 2 bits": ("png", png(GREY // 64, 2, 0), THREE // 64 * 85, 0),
    "png grey of 4 bits": ("png", png(GREY // 16, 4, 0), THREE // 16 * 17, 0),
    "png grey of 16 bits": ("png", saved(DEEP[..., 0]), THREE, 0),
    "png grey and alpha of 16 bits": ("png", png(GREY_ALPHA.astype(np.uint16) * 256, 16, 4), THREE, 0),
    "png of 16 bits": ("png", png(DEEP, 16, 2), RGB, 0),
    "png turned after its pixels": (
        "png",
        png(RGB, 8, 2, (b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))),
        TURNED[6](RGB),
        0,
    ),
    "jpg": ("jpg", saved(BIG, quality=95), BIG, 4),
    "jpg grey": ("jpg", saved(GREY, quality=95), THREE, 3),
    "jpg CMYK": ("jpg", saved(BIG, mode="CMYK", quality=95), BIG, 4),
    "jpg with a second image": ("jpg", saved(BIG, format="MPO", save_all=True, append_images=SECOND), BIG, 6),
    "jpg with damaged EXIF": ("jpg", saved(BIG, quality=95, exif=b"Exif\0\0no TIFF at all"), BIG, 4),
    "tif": ("tif", saved(), RGB, 0),
    "capital TIFF, LZW": ("TIFF", saved(compression="tiff_lzw"), RGB, 0),
    "tif 1 bit, fax": ("tif", saved(GREY > 99, compression="group4"), BLACK_WHITE, 0),
    "tif CMYK": ("tif", saved(mode="CMYK"), RGB, 0),
    "tif grey of 16 bits, big end first": ("tif", saved(Image.fromarray(DEEP[..., 0].astype(">u2"))), THREE, 0),
    "bmp": ("bmp", saved(), RGB, 0),
    "webp": ("webp", saved(BIG, quality=95), BIG, 6),
    **{f"jpg turned {n}": ("jpg", saved(BIG, quality=95, exif=exif(n)), turn(BIG), 4) for n, turn in TURNED.items()},
    **{f"{s} turned {n}": (s, saved(exif=exif(n)), turn(RGB), 0) for n, turn in TURNED.items() for s in ("png", "tif")},
    "webp turned": ("webp", saved(lossless=True, exif=exif(6)), TURNED[6](RGB), 0),
}


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
    folder, coco = (
        FolderDataset(SPEC, [(path, tmp_path / "mask.png")]),
        CocoInstances(tmp_path / "instances.json", tmp_path),
    )
    for sample in (folder[0], coco[0]):
        assert np.array_equal(sample.image_3HW.permute(1, 2, 0), seen)


def half(suffix):
    """The first half of a good file."""

    def write(path):
        content = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(content, suffix)
        path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])

    return write


TWO = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}


NO_IMAGES = {
    "nothing": ("png", lambda _path: None, "there is no such file"),
    "folder": ("png", lambda path: path.mkdir(), "cannot be read as an image .*a folder"),
    "pipe": ("png", lambda path: os.mkfifo(path), "cannot be read as an image .*a pipe"),
    "text": ("jpg", lambda path: path.write_text("this is no image"), "cannot be read as an image"),
    **{f"half a {s}": (s, half(s), "damaged or truncated") for s in ("png", "jpeg", "bmp", "webp", "tiff")},
    "png of 12 bits": ("png", png(DEEP // 16, 16, 2), "16 bits a channel and no value above 16383.* save it with 8"),
    "png of 14 bits, grey": ("png", saved(DEEP[..., 0] // 4), "16 bits a channel and no value above 16383"),
    "tif of floats": ("tif", saved(GREY.astype(np.float32)), "has mode F; expected grey or colours of 8 or 16 bits"),
    "tif Lab": ("tif", saved(mode="LAB"), "has mode LAB; expected"),
    "animated png": ("png", saved(**TWO), "has 2 frames; expected one"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_by_name_by_every_reader(tmp_path, kind, monkeypatch):
    suffix, write, message = NO_IMAGES[kind]
    path = tmp_path / f"file.{suffix}"
    write(path)
    saved(GREY * 0)(tmp_path / "mask.png")
    for read in (read_image, lambda path: FolderDataset(SPEC, [(path, tmp_path / "mask.png")])):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
    if kind in ("nothing", "folder", "pipe", "text"):
        with pytest.raises(DataError, match=message):
            image_size(path)
        with pytest.raises(DataError, match=message):
            read_mask(path, SPEC)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"mask\.png: cannot be read as an image .*decompression bomb"):
        read_image(tmp_path / "mask.png")


LABELS = (GREY // 86).astype(np.uint8)  # 0, 1 and 2, in stripes
WHITE = {"file_values": (0, 255, 9)}
COLOURED = {"file_colours": ((10, 20, 30), (0, 255, 0), (255, 0, 0)), "void_colours": ((0, 0, 0), (255, 255, 255))}
COLOURS = np.array([*COLOURED["file_colours"], (0, 0, 0)], dtype=np.uint8)
QUANTISED = Image.fromarray(COLOURS[LABELS]).quantize(8, dither=Image.Dither.NONE)
VOID = np.where(LABELS == 2, 255, LABELS)


def indexed(values, **options):
    image = Image.fromarray(values, mode="P")
    image.putpalette([channel for entry in range(256) for channel in (entry, 255 - entry, 7)])
    return saved(image, **options)


MASKS = {
    "grey": ("png", saved(LABELS), {}, LABELS),
    "palette": ("png", indexed(LABELS), {}, LABELS),
    "palette with alpha": ("png", indexed(LABELS, transparency=bytes(range(3))), {}, LABELS),
    "ignored": ("png", saved(VOID), {}, VOID),
    "1 bit, white is a class": ("png", saved(LABELS > 0), WHITE, (LABELS > 0) * 1),
    "0 and 255": ("png", saved((LABELS > 0).astype(np.uint8) * 255), WHITE, (LABELS > 0) * 1),
    "grey of 2 bits": ("png", png(LABELS, 2, 0), {}, LABELS),
    "16 bits": ("png", saved(LABELS.astype(np.uint16)), {}, LABELS),
    "tif of 32 bits": ("tif", saved(LABELS.astype(np.int32)), {}, LABELS),
    "tif 1 bit, fax": ("tif", saved(LABELS > 0, compression="group4"), {}, (LABELS > 0) * 1),
    "colours": ("png", saved(COLOURS[LABELS]), COLOURED, LABELS),
    "colours, some ignored": ("png", saved(COLOURS[np.where(LABELS == 2, 3, LABELS)]), COLOURED, VOID),
    "colours and alpha": ("png", saved(np.dstack([COLOURS[LABELS], GREY])), COLOURED, LABELS),
    "colours of a palette": ("png", saved(QUANTISED), COLOURED, LABELS),
    **{f"turned {n}": ("png", saved(LABELS, exif=exif(n)), {}, turn(LABELS)) for n, turn in TURNED.items()},
    "16 bits turned": ("png", saved(LABELS.astype(np.uint16), exif=exif(6)), {}, TURNED[6](LABELS)),
}


def spec(**fields):
    return DatasetSpec("fields", SPEC.class_names, SPEC.palette, **fields)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", MASKS)
def test_a_kind_of_mask_gives_its_labels(tmp_path, kind):
    suffix, write, fields, expected = MASKS[kind]
    path = tmp_path / f"mask.{suffix}"
    write(path)
    labels_HW = read_mask(path, spec(**fields))
    assert labels_HW.dtype == np.uint8
    assert np.array_equal(labels_HW, expected)


def white_is_zero(path):
    """A TIFF of 4 × 2 grey pixels whose 0 is white, by hand."""
    tags = ((256, 4), (257, 2), (258, 8), (259, 1), (262, 0), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 2), (279, 8))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + bytes(range(8)))


NO_MASKS = {
    "jpg": ("jpg", saved(LABELS), {}, "is compressed as JPEG, which changes label values; save masks as PNG"),
    "jpg in a tif": ("tif", saved(LABELS, compression="jpeg"), {}, "is compressed as JPEG"),
    "no table of colours": ("png", saved(COLOURS[LABELS]), {}, r"has mode RGB; .* it holds .*\[0, 255, 0\]"),
    "grey and alpha": ("png", saved(GREY_ALPHA), {}, "has mode LA; a mask needs one 8-bit channel"),
    "colours of 16 bits": ("png", png(COLOURS[LABELS].astype(np.uint16) * 257, 16, 2), COLOURED, "has 16 bits"),
    "values of 16 bits": (
        "png",
        saved(LABELS.astype(np.uint16) * 300),
        {},
        r"values 300 \(\d+ pixels\), 600 .*; expected",
    ),
    "negative": ("tif", saved(LABELS.astype(np.int32) - 1), {}, r"holds the label values -1 \("),
    "unknown colour": (
        "png",
        saved(COLOURS[LABELS] + np.uint8(1)),
        COLOURED,
        r"colour \[.*; the nearest entry is \[.* of ",
    ),
    "white tif": ("tif", white_is_zero, {}, "stores white as 0"),
    "animated": ("png", saved(LABELS, save_all=True, append_images=[Image.fromarray(VOID)]), {}, "has 2 frames"),
}


@pytest.mark.parametrize("kind", NO_MASKS)
def test_what_is_no_mask_is_refused_by_name(tmp_path, kind):
    suffix, write, fields, message = NO_MASKS[kind]
    path = tmp_path / f"mask.{suffix}"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        read_mask(path, spec(**fields))
    assert str(path) in str(caught.value)


def test_image_and_mask_must_agree_as_they_are_seen(tmp_path):
    saved(exif=exif(6))(tmp_path / "image.png")
    saved(LABELS)(tmp_path / "raw.png")
    saved(LABELS, exif=exif(6))(tmp_path / "same.png")
    with pytest.raises(DataError, match=r"image.png is 16×24 pixels and its mask .*raw.png 24×16.*as EXIF says"):
        FolderDataset(SPEC, [(tmp_path / "image.png", tmp_path / "raw.png")])
    sample = FolderDataset(SPEC, [(tmp_path / "image.png", tmp_path / "same.png")])[0]
    assert np.array_equal(sample.labels_HW, TURNED[6](LABELS))


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
    for size, side, expected in (((512, 683), 512, (384, 512)), ((8, 8), 32, (32, 32)), ((1, 3000), 512, (1, 512))):
        assert long_side_size(*size, side) == expected
    with pytest.raises(ValueError, match=r"height=0, width=4, long_side=512; expected at least 1"):
        long_side_size(0, 4, 512)
    with pytest.raises(ValueError, match="long_side=0"):
        LongSide(plain, 0)
