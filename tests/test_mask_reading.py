"""Masks of every kind give labels: values, palettes, colours, few and many bits; what cannot be meant is refused."""

import struct

import numpy as np
import pytest
from image_files import GREY, GREY_ALPHA, SPEC, TURNED, exif, png, saved
from PIL import Image

from apd.data.image_folder import FolderDataset
from apd.data.images import DataError, read_mask
from apd.data.specs import DatasetSpec

LABELS = (GREY // 86).astype(np.uint8)  # 0, 1 and 2, in stripes
WHITE = {"file_values": (0, 255, 9)}
COLOURED = {"file_colours": ((10, 20, 30), (0, 255, 0), (255, 0, 0)), "void_colours": ((0, 0, 0), (255, 255, 255))}
COLOURS = np.array([*COLOURED["file_colours"], (0, 0, 0)], dtype=np.uint8)
VOID = np.where(LABELS == 2, 255, LABELS)


def indexed(values, **options):
    image = Image.fromarray(values, mode="P")
    image.putpalette([channel for entry in range(256) for channel in (entry, 255 - entry, 7)])
    return saved(image, **options)


MASKS = {
    "grey": ("png", saved(LABELS), {}, LABELS),
    "palette": ("png", indexed(LABELS), {}, LABELS),
    "palette of 2 bits": ("png", indexed(LABELS, bits=2), {}, LABELS),
    "transparent palette": ("png", indexed(LABELS, transparency=0), {}, LABELS),
    "palette with alpha": ("png", indexed(LABELS, transparency=bytes(range(3))), {}, LABELS),
    "ignored": ("png", saved(VOID), {}, VOID),
    "1 bit": ("png", saved(LABELS > 0), {}, (LABELS > 0) * 1),
    "1 bit, white is a class": ("png", saved(LABELS > 0), WHITE, (LABELS > 0) * 1),
    "0 and 255": ("png", saved((LABELS > 0).astype(np.uint8) * 255), WHITE, (LABELS > 0) * 1),
    "grey of 2 bits": ("png", png(LABELS, 2, 0), {}, LABELS),
    "grey of 4 bits": ("png", png(LABELS, 4, 0), {}, LABELS),
    "16 bits": ("png", saved(LABELS.astype(np.uint16)), {}, LABELS),
    "tif": ("tif", saved(LABELS), {}, LABELS),
    "tif of 16 bits": ("tif", saved(LABELS.astype(np.uint16)), {}, LABELS),
    "tif of 32 bits": ("tif", saved(LABELS.astype(np.int32)), {}, LABELS),
    "tif 1 bit, fax": ("tif", saved(LABELS > 0, compression="group4"), {}, (LABELS > 0) * 1),
    "bmp": ("bmp", saved(LABELS), {}, LABELS),
    "colours": ("png", saved(COLOURS[LABELS]), COLOURED, LABELS),
    "colours, some ignored": ("png", saved(COLOURS[np.where(LABELS == 2, 3, LABELS)]), COLOURED, VOID),
    "colours and alpha": ("png", saved(np.dstack([COLOURS[LABELS], GREY])), COLOURED, LABELS),
    "colours of a palette": (
        "png",
        saved(Image.fromarray(COLOURS[LABELS]).quantize(8, dither=Image.Dither.NONE)),
        COLOURED,
        LABELS,
    ),
    "colours in webp": ("webp", saved(COLOURS[LABELS], lossless=True), COLOURED, LABELS),
    **{f"turned {n}": ("png", saved(LABELS, exif=exif(n)), {}, turn(LABELS)) for n, turn in TURNED.items()},
    "palette turned": ("png", indexed(LABELS, exif=exif(6)), {}, TURNED[6](LABELS)),
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


NO_MASKS = {
    "jpg": ("jpg", saved(LABELS), {}, "is compressed as JPEG, which changes label values; save masks as PNG"),
    "jpg that is called png": ("png", saved(LABELS, format="JPEG"), {}, "is compressed as JPEG"),
    "jpg in a tif": ("tif", saved(LABELS, compression="jpeg"), {}, "is compressed as JPEG"),
    "jpg of colours": ("jpg", saved(COLOURS[LABELS]), COLOURED, "is compressed as JPEG"),
    "colours without a table": (
        "png",
        saved(COLOURS[LABELS]),
        {},
        r"has mode RGB; .* colours: \[\[0, 0, 0\], \[255, 0, 0\]\]; it holds .*\[0, 255, 0\]",
    ),
    "grey and alpha": ("png", saved(GREY_ALPHA), {}, "has mode LA; a mask needs one 8-bit channel"),
    "floats": ("tif", saved(LABELS.astype(np.float32)), {}, "has mode F; a mask needs"),
    "colours of 16 bits": ("png", png(COLOURS[LABELS].astype(np.uint16) * 257, 16, 2), COLOURED, "has 16 bits"),
    "values of 16 bits": (
        "png",
        saved(LABELS.astype(np.uint16) * 300),
        {},
        r"holds the label values 300 \(\d+ pixels\), 600 .*; expected 0..2, or 255 for pixels to be ignored",
    ),
    "negative": ("tif", saved(LABELS.astype(np.int32) - 1), {}, r"holds the label values -1 \("),
    "unknown colour": (
        "png",
        saved(COLOURS[LABELS] + np.uint8(1)),
        COLOURED,
        r"holds the colour \[.*\] \(\d+ pixels\) and \d more unknown colours; the nearest entry is \[.*\] of ",
    ),
    "white tif": ("tif", lambda path: path.write_bytes(white_is_zero()), {}, "stores white as 0"),
    "animated": ("png", saved(LABELS, save_all=True, append_images=[Image.fromarray(VOID)]), {}, "has 2 frames"),
}


def white_is_zero():
    """A TIFF of 4 × 2 grey pixels whose 0 is white, by hand."""
    tags = ((256, 4), (257, 2), (258, 8), (259, 1), (262, 0), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 2), (279, 8))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + bytes(range(8))


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
