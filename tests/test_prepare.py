"""Preparing: idempotent, resumable, the same with any number of processes, and strict about what it takes."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from jaxtyping import TypeCheckError
from PIL import Image
from stores import build, picture, pictures, save_nifti, store_of, volume, volumes

from ssl_med.data import ingest
from ssl_med.data.index import find_images
from ssl_med.data.ingest import content_of, keyed
from ssl_med.data.likeness import perceptual_hash
from ssl_med.data.prepare import KILLED as KILLED_TEXT
from ssl_med.data.prepare import build_store
from ssl_med.data.record import Record
from ssl_med.data.settings import Settings
from ssl_med.data.store import Store, content_hash
from ssl_med.errors import UserError
from ssl_med.verbs.prepare import prepare


def files_of(store: Path) -> set[str]:
    return {f"{part}/{p.name}" for part in ("images", "masks") for p in (store / part).glob("*")}


def contents(store: Store) -> list[dict]:
    """Rows without what depends on the store's key."""
    return [asdict(replace(row, id="", patient="")) for row in store.rows]


def quarantine(store: Path) -> dict[str, str]:
    lines = pq.read_table(store / "private" / "quarantine.parquet").to_pylist()
    return {Path(line["file"]).name: line["reason"] for line in lines}


def test_a_second_time_does_nothing(tmp_path):
    source, store = volumes(tmp_path / "in", 4), tmp_path / "store"
    assert build(source, store) == {"images": 4, "new": 4, "refused": {}, "set_aside": 0}
    before = {p: p.stat().st_mtime_ns for p in (store / "images").iterdir()}
    rows = Store(store).rows
    assert build(source, store)["new"] == 0
    assert Store(store).rows == rows
    assert {p: p.stat().st_mtime_ns for p in (store / "images").iterdir()} == before


def test_a_changed_file_is_done_again_and_only_that(tmp_path):
    source, store = volumes(tmp_path / "in", 4), tmp_path / "store"
    build(source, store)
    old = Store(store)
    save_nifti(source / "images" / "case_2.nii.gz", volume(99)[0])
    assert build(source, store)["new"] == 1
    new = Store(store)
    assert [a.sha256 == b.sha256 for a, b in zip(old.rows, new.rows, strict=True)] == [True, True, False, True]
    assert [row.id for row in old.rows] == [row.id for row in new.rows]
    assert all(content_hash(new.read(row)) == row.sha256 for row in new.rows)


def test_a_file_put_back_is_done_again(tmp_path):
    """Size and time are then those of an earlier line of the journal, but the voxels stored are not."""
    source, store = volumes(tmp_path / "in", 2), tmp_path / "store"
    path, kept = source / "images" / "case_0.nii.gz", tmp_path / "kept.nii.gz"
    build(source, store)
    shutil.copy2(path, kept)
    save_nifti(path, volume(99)[0])
    build(source, store)
    shutil.copy2(kept, path)
    build(source, store)
    opened = Store(store)
    assert all(content_hash(opened.read(row)) == row.sha256 for row in opened.rows)
    assert np.array_equal(opened.read(opened.rows[0]), volume(0)[0].transpose(2, 1, 0)[None])


def test_a_removed_file_leaves_nothing_behind(tmp_path):
    source, store = volumes(tmp_path / "in", 3), tmp_path / "store"
    build(source, store)
    gone = Store(store).rows[1].id
    (source / "images" / "case_1.nii.gz").unlink()
    manifest = source / "manifest.csv"
    kept = [line for line in manifest.read_text().splitlines() if "case_1" not in line]
    manifest.write_text("\n".join(kept) + "\n")
    assert build(source, store) == {"images": 2, "new": 0, "refused": {}, "set_aside": 0}
    assert not [name for name in files_of(store) if gone in name]
    assert len(files_of(store)) == 4


def test_a_removed_mask_leaves_nothing_behind(tmp_path):
    source, store = volumes(tmp_path / "in", 2), tmp_path / "store"
    build(source, store)
    (source / "labels" / "case_0.nii.gz").unlink()
    build(source, store)
    rows = Store(store).rows
    assert [row.has_mask for row in rows] == [False, True]
    assert [p.stem for p in (store / "masks").iterdir()] == [rows[1].id]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_files_that_were_lost_are_made_again(tmp_path, part):
    source, store = volumes(tmp_path / "in", 2), tmp_path / "store"
    build(source, store)
    before = files_of(store)
    next((store / part).iterdir()).unlink()
    assert build(source, store)["new"] == 1
    assert files_of(store) == before


KILLED = """
import os, signal, sys
from pathlib import Path
import ssl_med.data.ingest as ingest
import ssl_med.data.prepare as prepare
from ssl_med.data.index import find_images
if __name__ == "__main__":
    real, done = prepare.prepare_one, []
    def deadly(job, **arguments):
        if len(done) == int(sys.argv[3]):
            ingest.write_array(arguments["folder"] / "images" / "half.b2nd", ingest.read(job.record).array)
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(job)
        return real(job, **arguments)
    prepare.prepare_one = deadly
    prepare.build_store(list(find_images(Path(sys.argv[1]))), Path(sys.argv[2]), [])
"""


@pytest.mark.parametrize("after", [0, 3])
def test_killed_and_repeated_is_the_same_as_uninterrupted(tmp_path, after):
    source = volumes(tmp_path / "in", 5)
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "store"), str(after)]
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path / "store")
    with (tmp_path / "store" / "private" / "journal.jsonl").open("a") as journal:
        journal.write('{"source": "cut o')
    assert build(source, tmp_path / "store")["new"] == 5 - after
    whole = store_of(source, tmp_path / "whole")
    assert contents(Store(tmp_path / "store")) == contents(whole)
    assert len(files_of(tmp_path / "store")) == 10


def test_two_processes_make_the_same_rows_in_the_same_order(tmp_path):
    source = volumes(tmp_path / "in", 6)
    one, two = (store_of(source, tmp_path / str(n), workers=n) for n in (1, 2))
    assert contents(one) == contents(two)
    records = list(find_images(source))
    for store in (one, two):
        key = (store.folder / "private" / "key").read_bytes()
        assert [row.id for row in store.rows] == [keyed(key, record.name) for record in records]


def test_bad_files_are_told_with_reasons_and_stay_out(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for number in range(3):
        save_nifti(source / f"good_{number}.nii.gz", volume(number)[0])
    whole = (source / "good_0.nii.gz").read_bytes()
    (source / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (source / "empty.nii.gz").write_bytes(b"")
    save_nifti(source / "constant.nii.gz", np.full((8, 8, 8), 7, np.int16))
    save_nifti(source / "nan.nii.gz", np.full((8, 8, 8), np.nan, np.float32))
    counts = build(source, store, max_bad_share=0.6)
    assert (counts["images"], sum(counts["refused"].values())) == (3, 4)
    reasons = quarantine(store)
    assert set(reasons) == {"cut.nii.gz", "empty.nii.gz", "constant.nii.gz", "nan.nii.gz"}
    assert "constant" in reasons["constant.nii.gz"]
    assert "empty" in reasons["empty.nii.gz"]
    assert all(reasons.values())
    assert len(files_of(store)) == 3
    assert build(source, store, max_bad_share=0.6)["new"] == 0  # refused ones are not read again


def test_private_files_are_for_their_owner_alone(tmp_path):
    build(volumes(tmp_path / "in", 2), tmp_path / "store")
    private = tmp_path / "store" / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {p.name for p in private.iterdir()} == {"key", "journal.jsonl", "sources.csv", "quarantine.parquet", "lock"}
    for path in private.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_too_many_bad_files_are_an_error(tmp_path):
    source = tmp_path / "in"
    save_nifti(source / "good.nii.gz", volume(0)[0])
    for name in ("a", "b"):
        (source / f"{name}.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 3 images cannot be used: 2 x"):
        build(source, tmp_path / "store")
    assert build(source, tmp_path / "store", max_bad_share=0.7)["images"] == 1


def test_no_image_at_all_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no image found"):
        build(tmp_path / "in", tmp_path / "store")


def test_another_rank_is_set_aside_and_not_read_twice(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for number in range(3):
        save_nifti(source / f"v{number}.nii.gz", volume(number)[0])
    Image.fromarray(picture(0, 0)).save(source / "p.png")
    counts = build(source, store)
    assert (counts["images"], counts["set_aside"]) == (3, 1)
    assert quarantine(store) == {"p.png": "2D with 1 channels in a store of 3D with 1"}
    assert len(files_of(store)) == 3
    assert build(source, store)["new"] == 0


def test_what_was_set_aside_comes_back_when_it_is_the_majority(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for number in range(2):
        save_nifti(source / f"v{number}.nii.gz", volume(number)[0])
    Image.fromarray(picture(0, 0)).save(source / "p.png")
    build(source, store)
    for number in range(2):
        (source / f"v{number}.nii.gz").unlink()
    assert build(source, store)["images"] == 1
    opened = Store(store)
    assert opened.spatial_dims == 2
    assert np.array_equal(opened.read(opened.rows[0])[0], picture(0, 0))


@pytest.mark.parametrize(
    ("painted", "stored"), [((0, 255), [0, 1]), ((255, 255), [1]), ((0, 0), [0]), ((0, 7), [0, 7])]
)
def test_black_and_white_masks_become_labels(tmp_path, painted, stored):
    source = tmp_path / "in"
    mask = np.where(np.indices((40, 40))[0] < 20, *painted).astype(np.uint8)
    for part, array in (("images", picture(0, 0)), ("masks", mask)):
        (source / part).mkdir(parents=True)
        Image.fromarray(array).save(source / part / "a.png")
    store = store_of(source, tmp_path / "store")
    assert store.rows[0].mask_values == stored
    assert np.unique(store.read(store.rows[0], "masks")).tolist() == stored


def test_foreground_points_at_labelled_voxels_of_every_class(tmp_path):
    store = store_of(volumes(tmp_path / "in", 2), tmp_path / "store")
    for row in store.rows:
        mask = store.read(row, "masks").reshape(-1)
        found = mask[store.foreground(row)]
        assert set(found) == {1, 2}
        assert all((found == value).sum() == min(256, (mask == value).sum()) for value in (1, 2))


def test_what_the_table_says_anew_is_taken_up(tmp_path):
    source, store = volumes(tmp_path / "in", 2), tmp_path / "store"
    build(source, store)
    manifest = source / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0] + ",site", *[f"{line},north" for line in lines[1:]]]) + "\n")
    build(source, store)
    sites = {row.site for row in Store(store).rows}
    assert len(sites) == 1
    assert "" not in sites


def test_the_key_cannot_be_guessed_back():
    assert keyed(b"a" * 32, "patient") != keyed(b"b" * 32, "patient")
    assert keyed(os.urandom(32), "") == ""


def test_a_file_that_was_only_touched_is_not_read_again(tmp_path):
    source, store = volumes(tmp_path / "in", 2), tmp_path / "store"
    build(source, store)
    before = {p: p.stat().st_mtime_ns for p in (store / "images").iterdir()}
    os.utime(source / "images" / "case_0.nii.gz", (1, 1))
    assert build(source, store)["new"] == 0
    assert {p: p.stat().st_mtime_ns for p in (store / "images").iterdir()} == before
    lines = (store / "private" / "journal.jsonl").read_text().count("\n")
    assert lines == 3
    build(source, store)
    assert (store / "private" / "journal.jsonl").read_text().count("\n") == lines  # nor hashed a second time


HOLDS = """
import sys, time
from pathlib import Path
from ssl_med.data.journal import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_on_one_folder_is_refused_until_the_first_ends_or_dies(tmp_path):
    source = volumes(tmp_path / "in", 2)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "store")], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is being prepared by another process"):
            build(source, tmp_path / "store")
        first.kill()
    assert build(source, tmp_path / "store")["images"] == 2


def test_a_run_with_too_many_bad_files_stops_before_it_has_read_them_all(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for number in range(10):
        (source / f"{number}.nii.gz").parent.mkdir(exist_ok=True)
        (source / f"{number}.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match="4 of 10 images cannot be used: 4 x"):
        build(source, store, max_bad_share=0.3)
    assert len(quarantine(store)) == 4
    with pytest.raises(UserError, match="4 of 10"):  # and does not go on where it stopped
        build(source, store, max_bad_share=0.3)


def test_a_worker_that_is_killed_is_named_and_the_others_are_kept(tmp_path, monkeypatch):
    source = volumes(tmp_path / "in", 3)

    def dying(*_):
        def engine(work, jobs, lost):
            for job in jobs:
                yield lost(job) if "case_1" in job.record.name else work(job)

        return engine

    monkeypatch.setattr("ssl_med.data.prepare.engine_of", dying)
    assert build(source, tmp_path / "store") == {"images": 2, "new": 3, "refused": {KILLED_TEXT: 1}, "set_aside": 0}
    assert quarantine(tmp_path / "store") == {"case_1.nii.gz": KILLED_TEXT}


def test_every_format_holds_the_same_voxels(tmp_path):
    source = volumes(tmp_path / "in", 2)
    one, other = (store_of(source, tmp_path / f, settings=Settings(format=f)) for f in ("b2nd", "npy"))
    assert {p.suffix for p in (tmp_path / "npy" / "masks").iterdir()} == {".npy"}
    assert one.fingerprint() == other.fingerprint()
    for first, second in zip(one.rows, other.rows, strict=True):
        assert np.array_equal(one.read(first), other.read(second))
        window = ([3, 4, 5], [10, 6, 7])
        assert np.array_equal(one.read(first, "masks", *window), other.read(second, "masks", *window))
        assert one.foreground(first).tolist() == other.foreground(second).tolist()
    assert build(source, tmp_path / "npy", settings=Settings(format="b2nd"))["new"] == 2
    assert {p.suffix for p in (tmp_path / "npy" / "images").iterdir()} == {".b2nd"}  # the old ones are gone


def test_floats_in_int16_are_within_half_a_step(tmp_path):
    image = np.random.default_rng(0).normal(5, 3, (12, 11, 10)).astype(np.float32)
    save_nifti(tmp_path / "in" / "a.nii.gz", image)
    store = store_of(tmp_path / "in", tmp_path / "store", settings=Settings(dtype="int16"))
    row = store.rows[0]
    found = store.read(row)
    assert store.read(row, raw=True).dtype == np.int16
    assert (found.dtype, row.dtype) == (np.float32, "float32")
    half = (image.max() - image.min()) / 131070
    error = np.abs(found - image.transpose(2, 1, 0)[None]).max()
    assert 0 < error <= half * 1.01
    assert half < 2e-4


def test_one_number_is_the_spacing_of_every_axis_of_pictures_and_volumes(tmp_path):
    for kind, shape in ((pictures, 2), (volumes, 3)):
        prepare(kind(tmp_path / f"in{shape}", 1), tmp_path / f"store{shape}", spacing=2.0)
        store = Store(tmp_path / f"store{shape}")
        assert store.rows[0].spacing == [2.0] * shape


def test_another_spacing_moves_image_mask_and_geometry_together(tmp_path):
    source = volumes(tmp_path / "in", 1)
    store = store_of(source, tmp_path / "store", settings=Settings(spacing=(1.0, 0.0, 2.0), order=1))
    row = store.rows[0]
    assert row.spacing == [1.0, 1.5, 2.0]
    assert row.shape == [1, 48, 22, 10]
    image, mask = store.read(row), store.read(row, "masks")
    assert image.dtype == np.int16
    assert set(np.unique(mask)) == {0, 1, 2}
    assert image[mask > 0].mean() > image[mask == 0].mean() + 50
    affine = np.array(row.affine).reshape(4, 4)
    assert affine[:3, 3] == pytest.approx([0.5, 0, -0.5])
    assert np.diag(affine) == pytest.approx([2.0, 1.5, 1.0, 1])


def test_what_is_set_aside_is_no_bad_file(tmp_path):
    source = volumes(tmp_path / "in", 2)
    records = list(find_images(source))
    records[1] = replace(records[1], aside="a localiser")
    counts = build_store(records, tmp_path / "store", [], max_bad_share=0.0, say=lambda text: None)
    assert counts == {"images": 1, "new": 2, "refused": {"a localiser": 1}, "set_aside": 1}


def test_tissue_is_found_where_no_mask_is(tmp_path):
    store = store_of(volumes(tmp_path / "in", 2, masks=False), tmp_path / "store")
    for row in store.rows:
        image = store.read(row).reshape(-1)
        points = store.foreground(row)
        assert len(points) == 256
        assert points.tolist() == store.tissue(row).tolist()
        assert image[points].mean() > image.mean() + 20


def test_rows_tell_likeness_and_warnings(tmp_path):
    records = [replace(r, notes=("two series were joined",)) for r in find_images(volumes(tmp_path / "in", 1))]
    build_store(records, tmp_path / "store", [], say=lambda text: None)
    row = Store(tmp_path / "store").rows[0]
    assert row.warnings == ["two series were joined"]
    assert row.phash == perceptual_hash(Store(tmp_path / "store").read(row))


@pytest.mark.parametrize(
    "wrong", [{"format": "zip"}, {"order": 2}, {"crop": 0}, {"spacing": (-1.0,)}, {"orientation": "RAR"}]
)
def test_settings_that_cannot_be_met_are_refused(wrong):
    with pytest.raises((UserError, TypeCheckError)):
        Settings(**wrong).check()


def test_two_images_of_one_name_are_refused_by_their_places(tmp_path):
    first, second = find_images(volumes(tmp_path / "in", 2))
    with pytest.raises(UserError, match="images 1 and 2 of 2 have the same name") as told:
        build_store([first, replace(second, name=first.name)], tmp_path / "store", [])
    assert "case" not in str(told.value)


def test_a_file_of_many_rows_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path, hashed = tmp_path / "a.npz", []
    path.write_bytes(b"rows")
    real = ingest.hashlib.file_digest
    monkeypatch.setattr(ingest.hashlib, "file_digest", lambda *given: hashed.append(given) or real(*given))
    rows = [Record(f"a.npz#{n}", "array", (path,), item=n) for n in range(5)]
    before = [content_of(row) for row in rows]
    assert (len(hashed), len(set(before))) == (1, 5)
    path.write_bytes(b"other rows")
    assert set(before).isdisjoint(content_of(row) for row in rows)


def test_an_image_too_large_for_the_memory_is_told_and_the_others_are_kept(tmp_path, monkeypatch):
    def read(record):
        if "case_1" in record.name:
            raise MemoryError
        return real(record)

    real = ingest.read
    monkeypatch.setattr(ingest, "read", read)
    assert build(volumes(tmp_path / "in", 3), tmp_path / "store")["images"] == 2
    assert quarantine(tmp_path / "store") == {"case_1.nii.gz": "not enough memory to read it"}


def test_labels_that_come_after_a_first_prepare_are_dealt(tmp_path):
    source, labels = tmp_path / "in", "label\n" + "".join(f"images/case_{n}.nii.gz,{n % 2}\n" for n in range(10))
    volumes(source, 10, masks=False)
    (source / "manifest.csv").write_text("image," + "x\n" + labels.partition("\n")[2])
    assert set(store_of(source, tmp_path / "store").rows.column("split")) == {"train"}
    (source / "manifest.csv").write_text("image," + labels)
    dealt = store_of(source, tmp_path / "store").rows.column("split").tolist()
    assert (dealt.count("test"), dealt.count("val")) == (2, 1)
    assert store_of(source, tmp_path / "store").rows.column("split").tolist() == dealt


def test_what_is_written_already_needs_no_room(tmp_path, monkeypatch, capsys):
    source, out = volumes(tmp_path / "in", 2), tmp_path / "store"
    build(source, out)
    written = sum((out / name).stat().st_size for name in files_of(out))
    monkeypatch.setattr("ssl_med.data.disk.disk_estimate", lambda *_: (written + 10, 10))
    assert prepare(source, out)["images"] == 2
    shutil.rmtree(out / "images")
    with pytest.raises(UserError, match="make room"):
        prepare(source, out)
