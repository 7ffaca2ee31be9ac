"""A PNG decoder of our own, because Pillow reduces 16-bit colour to 8 bits."""

import struct
import zlib

import numpy as np

_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type to bands


def read_png(path):
    """Pixels (height, width, bands) of a PNG of 8 or 16 bits, not interlaced, without a palette."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed = 8, b""
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + size]
        if kind == b"IHDR":
            width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
        position += size + 12
    assert interlace == 0
    step = _SAMPLES[colour] * bits // 8  # bytes of a pixel
    raw = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * step)
    rows = np.zeros(
        (height + 1, (width + 1) * step), np.int32
    )  # a row above and a pixel to the left of zeros
    for y in range(height):
        _unfilter(int(raw[y, 0]), raw[y, 1:], rows[y], rows[y + 1], step)
    pixels = rows[1:, step:].astype(np.uint8).tobytes()
    return np.frombuffer(pixels, f">u{bits // 8}").reshape(height, width, _SAMPLES[colour])


def _unfilter(kind, filtered, above, row, step):
    for i, value in enumerate(filtered.tolist(), start=step):
        left, up, corner = int(row[i - step]), int(above[i]), int(above[i - step])
        row[i] = (value + _predicted(kind, left, up, corner)) & 0xFF


def _predicted(kind, left, up, corner):
    if kind == 4:  # Paeth: whichever neighbour is nearest to left + up - corner
        guess = left + up - corner
        return min((left, up, corner), key=lambda neighbour: abs(guess - neighbour))
    return (0, left, up, (left + up) // 2)[kind]
