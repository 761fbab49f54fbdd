"""A PDF as Chromium writes it: its pages, the colours that it fills with, its images."""

from __future__ import annotations

import re
import zlib
from collections import Counter

_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_FILL = re.compile(rb"(?<![\d.])([\d.]+) ([\d.]+) ([\d.]+) rg\b")
_IMAGE = re.compile(rb"/Subtype /Image\s*/Width (\d+)\s*/Height (\d+)")


def pages(pdf: bytes) -> int:
    """Return the number of pages."""
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


def fills(pdf: bytes) -> Counter[str]:
    """Return how often each colour, ``#rrggbb``, is set for filling."""
    found: Counter[str] = Counter()
    for stream in _STREAM.findall(pdf):
        try:
            content = zlib.decompress(stream)
        except zlib.error:  # a picture or a font that is not deflated
            continue
        for parts in _FILL.findall(content):
            found["#" + "".join(f"{round(255 * float(part)):02x}" for part in parts)] += 1
    return found


def images(pdf: bytes) -> list[tuple[int, int]]:
    """Return width and height of each image, in pixels."""
    return [(int(width), int(height)) for width, height in _IMAGE.findall(pdf)]
