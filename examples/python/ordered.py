"""Compress the blocks of a file with four workers and put them together in order.

``zlib`` works without the interpreter lock, so the blocks are compressed in parallel on any
Python; ``ordered=True`` makes them leave in the order in which they were read.
"""

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path

from pyper import task

BLOCK = 8192


def blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


compress = task(blocks, branch=True, throttle=16) | task(zlib.compress, workers=4, ordered=True)

if __name__ == "__main__":
    path = Path(argparse.__file__)
    original = path.read_bytes()
    packed = list(compress(path))
    print("every block arrived:", len(packed) == -(-len(original) // BLOCK))
    #> every block arrived: True
    print("in order:", b"".join(map(zlib.decompress, packed)) == original)
    #> in order: True
