"""A series that holds several stacks (echoes, time points, b-values, acquisitions) taken apart by what tells them."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from ssl_med.data.readers.dicom_geometry import Plane, stack
from ssl_med.data.readers.dicom_tags import CLOCKS, SEPARATORS
from ssl_med.data.record import Unreadable

_NAMES = tuple(SEPARATORS)


class Part(NamedTuple):
    """Some planes of a series.

    Attributes:
        indices: which, in the order they were given.
        note: why they are not all of them; empty if they are.
    """

    indices: tuple[int, ...]
    note: str = ""


def parts_of(planes: Sequence[Plane]) -> list[Part]:
    """Take a series apart where that makes every part a sound stack; otherwise it stays one, and stacking says why not.

    The separators are tried one by one, then as the order in time at each place, then in pairs, then all together, so
    that a series is cut as little as possible.

    Args:
        planes: of one series, in any order.
    """
    whole = [Part(tuple(range(len(planes))))]
    if len(planes) < 2 or not all(plane.placed for plane in planes) or _sound(planes):
        return whole
    for name, keys in _ways(planes):
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, key in enumerate(keys):
            groups[key].append(index)
        if len(groups) > 1 and _all_sound([[planes[i] for i in members] for members in groups.values()]):
            note = f"one of {len(groups)} parts of a series, told apart by {name}"
            return [Part(tuple(members), note) for members in groups.values()]
    return whole


def _sound(planes: Sequence[Plane]) -> bool:
    try:
        stack(planes)
    except Unreadable:
        return False
    return True


def _all_sound(groups: list[list[Plane]]) -> bool:
    """Stacks of two slices and more, or frames of a film at one place: a lone slice beside a stack is neither."""
    if all(len(group) == 1 for group in groups):
        return len({(group[0].position, group[0].orientation) for group in groups}) == 1
    return all(len(group) > 1 and _sound(group) for group in groups)


def _ways(planes: Sequence[Plane]) -> Iterator[tuple[str, Sequence[Hashable]]]:
    """Names of separators and the value of each plane under them."""
    keys = {"matrix size": [plane.size for plane in planes], "PixelSpacing": [plane.spacing for plane in planes]}
    keys["orientation"] = _alike([plane.orientation for plane in planes])
    keys |= {name: [plane.tags[n] for plane in planes] for n, name in enumerate(_NAMES) if planes[0].tags}
    keys = {name: values for name, values in keys.items() if len(set(values)) > 1}
    yield from keys.items()
    for name in CLOCKS:
        if name in keys and (ranks := _ranks(planes, keys[name])):
            yield f"order of {name}", ranks
    for first, second in combinations(keys, 2):
        yield f"{first} and {second}", list(zip(keys[first], keys[second], strict=True))
    yield " and ".join(keys), list(zip(*keys.values(), strict=True))


def _alike(values: Sequence[tuple[float, ...]], tolerance: float = 1e-3) -> list[int]:
    """Number of the first value that each one is close to."""
    kinds: list[tuple[float, ...]] = []
    found = []
    for value in values:
        near = [max(abs(a - b) for a, b in zip(value, kind, strict=True)) <= tolerance for kind in kinds]
        number = near.index(True) if True in near else len(kinds)
        if number == len(kinds):
            kinds.append(value)
        found.append(number)
    return found


def _ranks(planes: Sequence[Plane], times: Sequence[str]) -> list[int] | None:
    """Place in time of each plane among those at its position; None where times are missing or equal."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, plane in enumerate(planes):
        places[tuple(round(number, 2) for number in plane.position)].append(index)
    ranks = [0] * len(planes)
    for members in places.values():
        try:
            when = {index: float(times[index]) for index in members}
        except ValueError:
            return None
        if len(set(when.values())) < len(members):
            return None
        for rank, index in enumerate(sorted(members, key=when.__getitem__)):
            ranks[index] = rank
    return ranks
