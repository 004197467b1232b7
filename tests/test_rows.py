"""The index as columns: the same rows as a list would give, mapped by every process, and selected without a loop."""

import multiprocessing
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_med.data.manifest import fingerprint, open_index, read_lock, write_index, write_lock
from ssl_med.data.rows import SCHEMA, Row, Rows, batches
from ssl_med.errors import UserError

BLANK = Row("", "", "", "", "", -1, "", [1, 8, 9], [1.0, 2.0], [], "uint8", False, [], "ab" * 32, *(0.0, 1.0) * 3)


def made(count: int) -> list[Row]:
    splits, kinds = ("train", "val", "test"), ("CT", "MR", "")
    return [
        replace(
            BLANK,
            id=f"{n:016x}",
            patient=f"p{n // 2}",
            split=splits[n % 3],
            label=n % 4 - 1,
            modality=kinds[n % 5 % 3],
            has_mask=n % 2 == 0,
            mask_values=[0, n] if n % 2 == 0 else [],
            shape=[1, 8 + n, 9],
            sha256=f"{n:064x}",
            phash=(-1) ** n * (n + (1 << 62)),
            warnings=["a note"] if n % 7 == 0 else [],
        )
        for n in range(count)
    ]


@pytest.fixture(params=["memory", "mapped"])
def rows(request, tmp_path) -> Rows:
    if request.param == "memory":
        return Rows.of(made(50))
    write_index(tmp_path, made(50), {})
    return open_index(tmp_path, Rows.open(tmp_path / "index.arrow").stamp)


def test_rows_are_a_sequence_of_what_was_put_in(rows):
    expected = made(50)
    assert len(rows) == 50
    assert list(rows) == expected
    assert [rows[n] for n in (0, 7, -1, -50)] == [expected[n] for n in (0, 7, -1, -50)]
    assert list(rows[3:40:5]) == expected[3:40:5]
    assert list(rows[::-1]) == expected[::-1]
    assert rows == expected
    assert rows != expected[:-1]
    for place in (50, -51):
        with pytest.raises(IndexError):
            rows[place]


def test_more_than_one_batch_reads_the_same():
    parts = list(batches(made(9000), size=3000))
    rows = Rows(pa.Table.from_batches(parts, SCHEMA))
    assert [part.num_rows for part in parts] == [3000, 3000, 3000]
    expected = made(9000)
    for place in (0, 2999, 3000, 8999):
        assert rows[place] == expected[place]
    assert rows.lengths("shape")[:, 1].tolist() == [row.shape[1] for row in expected]


@pytest.mark.parametrize(
    "asked",
    [
        {"split": "train"},
        {"has_mask": True},
        {"has_mask": False, "split": "val"},
        {"labelled": True, "modality": "CT"},
        {"labelled": False},
        {"split": "nothing"},
    ],
)
def test_where_selects_what_a_loop_would(rows, asked):
    def holds(row: Row) -> bool:
        facts = {"split": row.split, "has_mask": row.has_mask, "labelled": row.label >= 0, "modality": row.modality}
        return all(facts[name] == value for name, value in asked.items())

    expected = [row for row in made(50) if holds(row)]
    assert list(rows.where(**asked)) == expected
    first = next(iter(asked))
    assert list(rows.where(**{first: asked[first]}).where(**asked)) == expected


def test_columns_follow_the_selection(rows):
    chosen, expected = rows.where(split="val"), [row for row in made(50) if row.split == "val"]
    assert chosen.column("label").tolist() == [row.label for row in expected]
    assert chosen.column("id").tolist() == [row.id for row in expected]
    assert chosen.column("has_mask").tolist() == [row.has_mask for row in expected]
    assert chosen.lengths("shape").tolist() == [row.shape for row in expected]
    assert chosen[1:3].lengths("spacing").tolist() == [[1.0, 2.0]] * 2
    assert chosen.distinct("modality") == {
        kind: sum(row.modality == kind for row in expected) for kind in sorted({row.modality for row in expected})
    }
    with pytest.raises(UserError, match="shape is a list in every row"):
        rows.column("shape")


def test_a_mapped_selection_travels_as_a_path(tmp_path):
    write_index(tmp_path, made(5000), {})
    rows = Rows.open(tmp_path / "index.arrow")
    assert len(pickle.dumps(rows)) < 1000
    chosen = rows.where(split="test")
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    held = Rows.of(made(20)).where(split="test")
    assert pickle.loads(pickle.dumps(held)) == held


def third(rows: Rows) -> Row:
    return rows[2]


def test_a_spawned_process_reads_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    write_index(tmp_path, made(10), {})
    rows = Rows.open(tmp_path / "index.arrow").where(has_mask=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Rows.__getitem__, (rows, 2)) == made(10)[4]


def test_an_index_that_was_written_anew_is_not_taken_for_the_old_one(tmp_path):
    write_index(tmp_path, made(10), {})
    rows = Rows.open(tmp_path / "index.arrow")
    travelling = pickle.dumps(rows)
    write_index(tmp_path, made(9), {})
    assert len(rows) == 10  # what is mapped stays
    with pytest.raises(UserError, match="written anew"):
        pickle.loads(travelling)


def test_the_mapped_file_is_derived_from_the_manifest(tmp_path):
    write_index(tmp_path, made(30), {})
    stamp = Rows.open(tmp_path / "index.arrow").stamp
    (tmp_path / "index.arrow").unlink()
    assert open_index(tmp_path, stamp) == made(30)
    assert (tmp_path / "index.arrow").is_file()
    lines = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert [Row(**line) for line in lines] == made(30)


def test_an_index_of_another_stamp_is_refused(tmp_path):
    write_index(tmp_path, made(3), {})
    with pytest.raises(UserError, match="do not belong together"):
        open_index(tmp_path, "0" * 16)


def test_the_stamp_is_that_of_every_column(tmp_path):
    def stamp(rows: list[Row]) -> str:
        write_index(tmp_path, rows, {})
        return Rows.open(tmp_path / "index.arrow").stamp

    rows = made(5)
    changed = [[*rows[:4], replace(rows[4], **{name: value})] for name, value in (("split", "x"), ("seal", "y"))]
    assert len({stamp(rows), *map(stamp, changed)}) == 3
    assert stamp(rows) == stamp(made(5))


@pytest.mark.parametrize("kind", [list, Rows.of])
def test_the_lock_names_the_rows_of_a_run_without_a_path(tmp_path, kind):
    rows = made(12)
    path = write_lock(tmp_path, kind(rows), "the key")
    table, facts = read_lock(path)
    assert path.name == "manifest.lock"
    assert facts == {"images": "12", "fingerprint": fingerprint(rows), "key": "the key"}
    assert table.column("id").to_pylist() == [row.id for row in rows]
    assert table.column("patient").to_pylist() == [row.patient for row in rows]
    assert [value.hex() for value in table.column("sha256").to_pylist()] == [row.sha256 for row in rows]
    assert table.column("phash").to_pylist() == [row.phash for row in rows]
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_large_index_needs_no_memory_of_its_own(tmp_path):
    """Drawing rows at random from a mapped table allocates nothing that stays."""
    table = Rows.of(made(100)).table
    many = pa.concat_tables([table] * 500).combine_chunks()
    with pa.OSFile(str(tmp_path / "index.arrow"), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(many)
    before = pa.total_allocated_bytes()
    rows = Rows.open(tmp_path / "index.arrow")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(rows), 500):
        assert rows[int(place)].id == f"{place % 100:016x}"
    assert pa.total_allocated_bytes() - before < 100_000
