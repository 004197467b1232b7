"""Images left out are counted over all processes of a run, and the limit is the same for each of them."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from stores import store_of, volumes

from ssl_med.data.ledger import Ledger, images_left_out, mark_start
from ssl_med.data.module import StoreData
from ssl_med.errors import UserError


def test_what_one_process_notes_all_of_them_count(tmp_path) -> None:
    path = tmp_path / "ledger"
    first, second, other = Ledger(path), Ledger(path), Ledger(path, 1)
    first.note("a", "broken")
    second.note("b", "slow", 7, 2)
    other.note("c", "broken")
    for ledger in (first, second, other):
        ledger.refresh()
    assert first.left_out == second.left_out == {"a": "broken", "b": "slow"}
    assert first.stalled == {(7, 2)}
    assert list(other.left_out) == ["c"]
    mark_start(path, 3)
    first.refresh()
    assert first.left_out == {}
    assert first.stalled == {(7, 2)}  # what a position gave it gives again
    assert images_left_out(path) == {"a": "broken", "b": "slow", "c": "broken"}


def test_a_line_that_is_still_written_waits(tmp_path) -> None:
    path = tmp_path / "ledger"
    ledger, whole = Ledger(path), json.dumps({"id": "a", "reason": "broken"})
    path.write_text(whole[:9])
    ledger.refresh()
    assert ledger.left_out == {}
    path.write_text(whole + "\n")
    ledger.refresh()
    assert list(ledger.left_out) == ["a"]


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file grows beyond this size: a write that passes it is cut, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_its_own_lines_and_one_warning(tmp_path, caplog) -> None:
    path = tmp_path / "ledger"
    ledger, other = Ledger(path), Ledger(path)
    ledger.note("a", "broken")
    with little_room(path.stat().st_size + 9):
        for image in ("b", "c"):
            ledger.note(image, "broken")
    assert list(ledger.left_out) == ["a", "b", "c"]  # this process knows nevertheless
    ledger.note("d", "broken")
    assert caplog.text.count("ledger cannot be written") == 1
    other.refresh()
    assert list(other.left_out) == list(images_left_out(path)) == ["a", "d"]
    mark_start(path, 3)
    other.refresh()
    assert other.left_out == {}


@pytest.fixture
def damaged(tmp_path) -> StoreData:
    """A store of 12 training images, of which those at the positions 0, 4 and 8 are damaged, none behind another."""
    store_of(volumes(tmp_path / "in", 20, masks=False), tmp_path / "store")
    data = StoreData(str(tmp_path / "store"), crop=8, batch_size=2)
    plain = data.crops()
    assert len(plain.rows) == 12
    for position in (0, 4, 8):
        row = plain.rows[plain.order(position)]
        (tmp_path / "store" / "images" / f"{row.id}.b2nd").write_bytes(b"not what was written")
    data.ledger = tmp_path / "ledger"
    return data


def test_the_limit_holds_for_all_processes_together(damaged) -> None:
    ranks = [damaged.crops() for _ in range(2)]
    for rank in ranks:
        rank.most_damaged = 1 / 12  # one image
    ranks[0].__getitems__([0])
    assert len(ranks[0].damaged) == 1
    with pytest.raises(UserError, match="2 of 12 images are damaged"):
        ranks[1].__getitems__([4])
    with pytest.raises(UserError, match="2 of 12 images are damaged"):  # it has met one of them alone
        ranks[0].__getitems__([2])
    mark_start(damaged.ledger, 1)  # repaired, or perhaps not: the images are counted anew
    again = damaged.crops()
    again.most_damaged = 1 / 12
    assert torch.isfinite(again.__getitems__([2])["image"]).all()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loader_processes_count_together(damaged) -> None:
    damaged.num_workers = 2
    loader = damaged.loader()
    loader.dataset.most_damaged = 2 / 12
    with pytest.raises(UserError, match="3 of 12 images are damaged"):
        for _, _ in zip(range(30), loader, strict=False):
            pass
