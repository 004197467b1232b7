"""Small valid files of every format, ways to break them, and a judge of what a reader makes of the pieces.

Shared by ``tests/test_fuzz.py`` and ``benchmarks/fuzz.py``. Each case is a pure function of (seed, number).
"""

import re
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from formats import SEEDS, Seed

from ssl_med.data.readers import Limits, read
from ssl_med.data.record import Record, Unreadable

LIMITS = Limits(voxels=10**6, size=4 * 10**6)
HEADER = 400
"""Bytes at the start of a file that are taken for its header."""


@dataclass(frozen=True)
class Case:
    """One broken file: which seed, how it was broken, and the bytes of its files."""

    seed: str
    damage: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Outcome:
    """What the reader did.

    ``refused``; ``unharmed``: the voxels of the seed; ``agrees``: other voxels, the same as an independent decoder's;
    ``unconfirmed``: other voxels, and no other decoder opens the file, or each mends it its own way; ``wrong``: voxels
    that the format could know to be damaged, or that an independent decoder contradicts; ``crash``: another exception.
    """

    verdict: str
    reason: str
    peak: int  # bytes


def truncated(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    return data[: random.integers(1, len(data))]


def header_bits(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    return _flipped(data, random.integers(0, min(HEADER, len(data)), random.integers(1, 4)), random)


def body_bits(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    start = min(seed.header, len(data) - 1)
    return _flipped(data, random.integers(start, len(data), random.integers(1, 4)), random)


def absurd_size(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    words = [b"2147483647", b"99999999", b"-1", b"0", b"1" + b"0" * 30, b"30000"]
    if (text := _replaced(data, random, words[random.integers(len(words))])) is not None:
        return text
    numbers = [("<H", 0xFFFF), ("<I", 2**31 - 1), ("<I", 2**32 - 1), (">I", 2**31 - 1), ("<I", 0), ("<Q", 2**62)]
    layout, value = numbers[random.integers(len(numbers))]
    return _packed(data, random, layout, value)


def not_a_number(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    words = [b"nan", b"inf", b"-inf", b"1e400"]
    if (text := _replaced(data, random, words[random.integers(len(words))])) is not None:
        return text
    layout = ("<f", ">f", "<d")[random.integers(3)]
    return _packed(data, random, layout, (np.nan, np.inf, -np.inf)[random.integers(3)])


def wrong_magic(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    others = [
        b"<html>",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"NRRD0009",
        b"\x1f\x8b\x08\0",
        b"PK\x03\x04",
        bytes(8),
        b"%PDF",
    ]
    magic = others[random.integers(len(others))]
    return magic + data[len(magic) :]


def lengthened(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    return data + random.bytes(int(random.integers(1, 600)))


def zeroed(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    start = int(random.integers(len(data)))
    stop = min(len(data), start + int(random.integers(1, 200)))
    return data[:start] + bytes(stop - start) + data[stop:]


def shifted(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    place, count = int(random.integers(len(data))), int(random.integers(1, 9))
    return data[:place] + (random.bytes(count) + data[place:] if random.random() < 0.5 else data[place + count :])


def bomb(data: bytes, random: np.random.Generator, seed: Seed) -> bytes:
    return _bomb(seed.bomb, data) if seed.bomb else absurd_size(data, random, seed)


_bomb = cache(lambda make, data: make(data))  # packing megabytes takes longer than refusing them


Damage = Callable[[bytes, np.random.Generator, Seed], bytes]
DAMAGES: dict[str, Damage] = {
    "cut short": truncated,
    "bits of the header": header_bits,
    "bits of the body": body_bits,
    "absurd size": absurd_size,
    "not a number": not_a_number,
    "wrong magic": wrong_magic,
    "lengthened": lengthened,
    "zeroed": zeroed,
    "shifted": shifted,
    "bomb": bomb,
}


def case(seed: int, number: int) -> Case:
    """Every format and every damage in turn, the details drawn from (seed, number)."""
    names, kinds = list(SEEDS), list(DAMAGES)
    random = np.random.default_rng((seed, number))
    name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
    files = dict(SEEDS[name].files)
    victims = sorted(files) if kind != "bomb" else [SEEDS[name].packed or sorted(files)[0]]
    victim = victims[random.integers(len(victims))]
    files[victim] = DAMAGES[kind](files[victim], random, SEEDS[name])
    return Case(name, kind, files)


def judge(broken: Case, folder: Path) -> Outcome:
    """Write a case into an empty folder, read it, and hold what comes out against an independent decoder."""
    seed = SEEDS[broken.seed]
    for name, data in broken.files.items():
        (folder / name).write_bytes(data)
    record = Record("a", seed.reader, tuple(folder / name for name in seed.record), item=seed.item)
    tracemalloc.start()
    try:
        image = read(record, LIMITS)
    except Unreadable as error:
        verdict = "crash" if str(folder) in str(error) else "refused"
        return Outcome(verdict, str(error), tracemalloc.get_traced_memory()[1])
    except Exception as error:
        return Outcome("crash", f"{type(error).__name__}: {error}", tracemalloc.get_traced_memory()[1])
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return Outcome(_verdict(seed, broken, image.array, folder), "", peak)


def _verdict(seed: Seed, broken: Case, array: np.ndarray, folder: Path) -> str:
    if not np.isfinite(array).all():
        return "wrong"
    if _same(array, seed.voxels):
        return "unharmed"
    if seed.knows(broken.damage):
        return "wrong"
    if seed.decode is None:
        return "unconfirmed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(seed.decode(folder))
    except Exception:
        return "unconfirmed"
    if _same(array, expected):
        return "agrees"
    return "unconfirmed" if broken.damage in seed.mended else "wrong"


def _same(array: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays hold the same values, whatever the order of their axes."""
    if array.size != expected.size:
        return False
    mine, other = (np.sort(values.astype(np.float64).ravel()) for values in (array, expected))
    return np.allclose(mine, other, rtol=1e-6, atol=0)


def _flipped(data: bytes, places: np.ndarray, random: np.random.Generator) -> bytes:
    block = bytearray(data)
    for place in places:
        block[place] ^= 1 << int(random.integers(8))
    return bytes(block)


def _replaced(data: bytes, random: np.random.Generator, word: bytes) -> bytes | None:
    """One number of a text header replaced; None where the header is no text."""
    start = data[:HEADER]
    if sum(32 <= byte < 127 or byte in b"\r\n\t" for byte in start[:100]) < 95:
        return None
    found = list(re.finditer(rb"\d+(\.\d+)?", start))
    if not found:
        return None
    match = found[random.integers(len(found))]
    return data[: match.start()] + word + data[match.end() :]


def _packed(data: bytes, random: np.random.Generator, layout: str, value: float) -> bytes:
    size = struct.calcsize(layout)
    if len(data) < size:
        return data
    block = bytearray(data)
    place = int(random.integers(0, max(1, min(HEADER, len(data)) - size))) & ~1
    struct.pack_into(layout, block, place, value)
    return bytes(block)
