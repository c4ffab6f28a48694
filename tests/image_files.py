"""Image files of every kind, written for tests: some by pillow, some by hand, and what a viewer shows of them."""

import struct
import zlib

import numpy as np
from PIL import Image

from apd.data.specs import DatasetSpec

HEIGHT, WIDTH = 16, 24
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([255 * COLUMNS // (WIDTH - 1), 255 * ROWS // (HEIGHT - 1), 0 * ROWS + 90], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]
SPEC = DatasetSpec("fields", ("soil", "crop", "weed"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))


TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: np.rot90,
}


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
        if depth == 16:
            rows = [row.astype(">u2").tobytes() for row in flat]
        else:
            bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
            rows = [row.tobytes() for row in np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)]
        data = zlib.compress(b"".join(b"\0" + row for row in rows))
        header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", data), *chunks, (b"IEND", b"")]
        packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))

    return write


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def palette(transparent=False):
    image = Image.fromarray(GREY // 16, mode="P")
    image.putpalette([channel for entry in range(16) for channel in (entry * 16, 255 - entry, 7)])
    return saved(image, **({"transparency": bytes(range(0, 160, 10))} if transparent else {}))


OF_PALETTE = np.stack([GREY // 16 * 16, 255 - GREY // 16, np.full_like(GREY, 7)], axis=-1)
ALPHA = np.dstack([RGB, np.where(GREY > 99, 0, 255).astype(np.uint8)])
GREY_ALPHA = np.dstack([GREY, ALPHA[..., 3]])
DEEP, THREE = RGB.astype(np.uint16) * 256 + 77, GREY[..., None].repeat(3, -1)
BLACK_WHITE = np.where(THREE > 99, 255, 0)
BIG = np.kron(RGB, np.ones((4, 4, 1), np.uint8))  # blocks on which JPEG and WebP lose little
SECOND = [Image.fromarray(BIG[::-1])]
