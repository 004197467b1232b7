"""The streaming form: the same rows and crops through litdata as from files, and damage is seen there too."""

import pickle

import numpy as np
import pytest
from stores import store_of, volumes

from ssl_med.data.seal import Damaged, split_seal
from ssl_med.data.settings import Settings
from ssl_med.data.store import Store
from ssl_med.data.streaming import in_memory
from ssl_med.errors import UserError

pytest.importorskip("litdata", reason="the extra `stream` is not installed")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Store, Store]:
    folder = tmp_path_factory.mktemp("streaming")
    files = store_of(volumes(folder / "in", 5), folder / "store")
    return files, Store(files.to_litdata(folder / "stream", chunk_bytes=50_000))


def test_rows_and_crops_are_those_of_the_files(stores):
    files, stream = stores
    assert stream.rows == files.rows
    assert stream.fingerprint() == files.fingerprint()
    assert len(list((stream.folder / "chunks").glob("*.bin"))) > 1
    for number in (3, 0, 4, 1, 2):
        row = files.rows[number]
        for part in ("images", "masks"):
            window = ([2, 3, 4], [9, 10, 11])
            assert np.array_equal(stream.read(row, part, *window), files.read(row, part, *window))
        assert stream.foreground(row).tolist() == files.foreground(row).tolist()


def test_another_process_can_take_it_over(stores):
    files, stream = stores
    stream.read(stream.rows[0])
    other = pickle.loads(pickle.dumps(stream))
    assert np.array_equal(other.read(files.rows[2]), files.read(files.rows[2]))


def test_a_changed_byte_is_seen(stores):
    files, _ = stores
    row = files.rows[0]
    content, table = split_seal((files.folder / "images" / f"{row.id}.b2nd").read_bytes())
    window = tuple(slice(0, n) for n in row.shape[1:])
    assert np.array_equal(in_memory(content, table, row.seal).read(window), files.read(row))
    for place in range(0, len(content), 509):
        changed = bytearray(content)
        changed[place] ^= 4
        with pytest.raises(Damaged):
            in_memory(bytes(changed), table, row.seal).read(window)
    with pytest.raises(Damaged):
        in_memory(content, table[:-1], row.seal)


def test_what_cannot_be_streamed_is_refused(stores, tmp_path):
    files, _ = stores
    with pytest.raises(UserError, match="is not empty"):
        files.to_litdata(files.folder)
    bare = store_of(volumes(tmp_path / "in", 1), tmp_path / "bare", settings=Settings(format="npy"))
    with pytest.raises(UserError, match="only b2nd arrays can be streamed"):
        bare.to_litdata(tmp_path / "stream")
