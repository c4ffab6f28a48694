"""Image files of every kind, written for tests: some by pillow, some by hand, and what a viewer shows of them."""

import io
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
from PIL import Image

from apd.data.specs import DatasetSpec

HEIGHT, WIDTH = 16, 24
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([255 * COLUMNS // (WIDTH - 1), 255 * ROWS // (HEIGHT - 1), 0 * ROWS + 90], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]
SPEC = DatasetSpec("fields", ("soil", "crop", "weed"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))
FLIPPED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud}
TURNED = FLIPPED | {n + 4: lambda a, flip=flip: flip(np.swapaxes(a, 0, 1)) for n, flip in FLIPPED.items()}


def saved(pixels=RGB, mode=None, **options):
    """A writer of pixels by pillow, in the format of the file's suffix."""

    def write(path):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path, **options)

    return write


def png(pixels, depth, kind, *chunks):
    """A writer of a PNG by hand: pillow writes neither 16 bits of colour nor 2 and 4 of grey."""

    def write(path):
        flat = pixels.reshape(len(pixels), -1)
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", data), *chunks, (b"IEND", b"")]
        packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))

    return write


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def indexed(values, entries, **options):
    """A writer of an image with a palette of so many colours."""
    image = Image.fromarray(values, mode="P")
    image.putpalette([channel for entry in range(entries) for channel in (entry * 256 // entries, 255 - entry, 7)])
    return saved(image, **options)


def half(suffix):
    """A writer of the first half of a good file."""

    def write(path):
        content = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(content, suffix)
        path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])

    return write


def white_is_zero(path):
    """Write a TIFF of 4 × 2 grey pixels whose 0 is white, by hand."""
    tags = ((256, 4), (257, 2), (258, 8), (259, 1), (262, 0), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 2), (279, 8))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + bytes(range(8)))


OF_PALETTE = np.stack([GREY // 16 * 16, 255 - GREY // 16, np.full_like(GREY, 7)], axis=-1)
ALPHA = np.dstack([RGB, np.where(GREY > 99, 0, 255).astype(np.uint8)])
GREY_ALPHA = np.dstack([GREY, ALPHA[..., 3]])
DEEP, THREE = RGB.astype(np.uint16) * 256 + 77, GREY[..., None].repeat(3, -1)
BLACK_WHITE = np.where(THREE > 99, 255, 0)
BIG = np.kron(RGB, np.ones((4, 4, 1), np.uint8))  # blocks on which JPEG and WebP lose little
SECOND = [Image.fromarray(BIG[::-1])]
# suffix, writer, what is to be read, and how far lossy compression may be from it on average
KINDS = {
    "png": ("png", saved(), RGB, 0),
    "png alpha": ("png", saved(ALPHA), RGB, 0),
    "png palette": ("png", indexed(GREY // 16, 16), OF_PALETTE, 0),
    "png palette, transparent": ("png", indexed(GREY // 16, 16, transparency=bytes(range(0, 160, 10))), OF_PALETTE, 0),
    "png 1 bit": ("png", saved(GREY > 99), BLACK_WHITE, 0),
    "png grey of 2 bits": ("png", png(GREY // 64, 2, 0), THREE // 64 * 85, 0),
    "png grey of 4 bits": ("png", png(GREY // 16, 4, 0), THREE // 16 * 17, 0),
    "png grey of 16 bits": ("png", saved(DEEP[..., 0]), THREE, 0),
    "png grey and alpha of 16 bits": ("png", png(GREY_ALPHA.astype(np.uint16) * 256, 16, 4), THREE, 0),
    "png of 16 bits": ("png", png(DEEP, 16, 2), RGB, 0),
    "png turned after its pixels": ("png", png(RGB, 8, 2, (b"eXIf", exif(6).tobytes()[6:])), TURNED[6](RGB), 0),
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
TWO = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}
NO_IMAGES = {
    "nothing": ("png", lambda _path: None, "there is no such file"),
    "folder": ("png", lambda path: path.mkdir(), "cannot be read as an image .*a folder"),
    "pipe": ("png", lambda path: os.mkfifo(path), "cannot be read as an image .*a pipe"),
    "text": ("jpg", lambda path: path.write_text("this is no image"), "cannot be read as an image"),
    **{f"half a {s}": (s, half(s), "damaged or truncated") for s in ("png", "jpeg", "bmp", "webp", "tiff")},
    "png of 14 bits, grey": ("png", saved(DEEP[..., 0] // 4), "16 bits a channel and no value above 16383"),
    "tif of floats": ("tif", saved(GREY.astype(np.float32)), "has mode F; expected grey or colours of 8 or 16 bits"),
    "tif Lab": ("tif", saved(mode="LAB"), "has mode LAB; expected"),
    "animated png": ("png", saved(**TWO), "has 2 frames; expected one"),
}
LABELS = (GREY // 86).astype(np.uint8)  # 0, 1 and 2, in stripes
WHITE = replace(SPEC, file_values=(0, 255, 9))
OF_CLASSES, IGNORED = ((10, 20, 30), (0, 255, 0), (255, 0, 0)), ((0, 0, 0), (255, 255, 255))
COLOURED = replace(SPEC, file_colours=OF_CLASSES, void_colours=IGNORED)
COLOURS = np.array([*OF_CLASSES, (0, 0, 0)], dtype=np.uint8)
PAINTED = COLOURS[LABELS]
QUANTISED = Image.fromarray(PAINTED).quantize(8, dither=Image.Dither.NONE)
VOID = np.where(LABELS == 2, 255, LABELS)
MASKS = {
    "grey": ("png", saved(LABELS), SPEC, LABELS),
    "palette": ("png", indexed(LABELS, 256), SPEC, LABELS),
    "palette with alpha": ("png", indexed(LABELS, 256, transparency=bytes(range(3))), SPEC, LABELS),
    "ignored": ("png", saved(VOID), SPEC, VOID),
    "1 bit, white is a class": ("png", saved(LABELS > 0), WHITE, (LABELS > 0) * 1),
    "0 and 255": ("png", saved((LABELS > 0).astype(np.uint8) * 255), WHITE, (LABELS > 0) * 1),
    "grey of 2 bits": ("png", png(LABELS, 2, 0), SPEC, LABELS),
    "16 bits": ("png", saved(LABELS.astype(np.uint16)), SPEC, LABELS),
    "tif of 32 bits": ("tif", saved(LABELS.astype(np.int32)), SPEC, LABELS),
    "tif 1 bit, fax": ("tif", saved(LABELS > 0, compression="group4"), SPEC, (LABELS > 0) * 1),
    "colours": ("png", saved(PAINTED), COLOURED, LABELS),
    "colours, some ignored": ("png", saved(COLOURS[np.where(LABELS == 2, 3, LABELS)]), COLOURED, VOID),
    "colours and alpha": ("png", saved(np.dstack([PAINTED, GREY])), COLOURED, LABELS),
    "colours of a palette": ("png", saved(QUANTISED), COLOURED, LABELS),
    **{f"turned {n}": ("png", saved(LABELS, exif=exif(n)), SPEC, turn(LABELS)) for n, turn in TURNED.items()},
    "16 bits turned": ("png", saved(LABELS.astype(np.uint16), exif=exif(6)), SPEC, TURNED[6](LABELS)),
}
NO_MASKS = {
    "jpg": ("jpg", saved(LABELS), SPEC, "is compressed as JPEG, which changes label values; save masks as PNG"),
    "jpg in a tif": ("tif", saved(LABELS, compression="jpeg"), SPEC, "is compressed as JPEG"),
    "no table of colours": ("png", saved(PAINTED), SPEC, r"has mode RGB; .* it holds .*\[0, 255, 0\]"),
    "grey and alpha": ("png", saved(GREY_ALPHA), SPEC, "has mode LA; a mask needs one 8-bit channel"),
    "colours of 16 bits": ("png", png(PAINTED.astype(np.uint16) * 257, 16, 2), COLOURED, "has 16 bits"),
    "16 bits": ("png", saved(LABELS.astype(np.uint16) * 300), SPEC, r"values 300 \(\d+ pixels\), 600 .*; expected"),
    "negative": ("tif", saved(LABELS.astype(np.int32) - 1), SPEC, r"holds the label values -1 \("),
    "unknown colour": ("png", saved(PAINTED + np.uint8(1)), COLOURED, r"colour \[.*; the nearest entry is \[.* of "),
    "white tif": ("tif", white_is_zero, SPEC, "stores white as 0"),
    "animated": ("png", saved(LABELS, save_all=True, append_images=[Image.fromarray(VOID)]), SPEC, "has 2 frames"),
}
