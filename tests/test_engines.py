"""Engines: the same results from processes and from a Dask cluster, and a killed worker costs one named item."""

import pytest
from engine_work import die_at_five, double, refuse_three
from stores import build, volumes

from ssl_med.data.engines import engine_of
from ssl_med.data.store import Store, content_hash
from ssl_med.errors import UserError


def lost(item: int) -> int:
    return -item


def test_one_process_keeps_the_order():
    assert list(engine_of("processes", 1)(double, range(7), lost)) == [2 * n for n in range(7)]


def test_processes_give_every_result_once():
    assert sorted(engine_of("processes", 2)(double, iter(range(30)), lost)) == [2 * n for n in range(30)]


def test_a_killed_process_costs_its_item_alone():
    expected = sorted([-5, *(2 * n for n in range(20) if n != 5)])
    assert sorted(engine_of("processes", 2)(die_at_five, iter(range(20)), lost)) == expected


def test_an_error_of_the_work_is_no_lost_worker():
    with pytest.raises(ValueError, match="three"):
        list(engine_of("processes", 2)(refuse_three, iter(range(8)), lost))


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = engine_of("processes", 2)(double, items(), lost)
    next(results)
    assert len(taken) <= 10
    results.close()


@pytest.mark.parametrize(("name", "scheduler"), [("slurm", ""), ("processes", "tcp://host:8786")])
def test_unknown_engines_are_refused(name, scheduler):
    with pytest.raises(UserError, match="expected processes, or dask"):
        engine_of(name, 2, scheduler)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
    ) as found:
        yield found


def test_a_dask_cluster_gives_every_result_once(cluster):
    found = engine_of("dask", scheduler=cluster.scheduler_address)(double, iter(range(30)), lost)
    assert sorted(found) == [2 * n for n in range(30)]


def test_a_dask_cluster_prepares_the_same_store(cluster, tmp_path):
    source = volumes(tmp_path / "in", 6)
    build(source, tmp_path / "here")
    build(source, tmp_path / "there", engine="dask", scheduler=cluster.scheduler_address)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert here.fingerprint() == there.fingerprint()
    assert all(content_hash(there.read(row)) == row.sha256 for row in there.rows)


def test_a_killed_dask_worker_costs_its_item_alone():
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
    ):
        found = sorted(engine_of("dask", scheduler=cluster.scheduler_address)(die_at_five, iter(range(8)), lost))
    assert found == sorted([-5, *(2 * n for n in range(8) if n != 5)])


def test_a_scheduler_that_is_not_there_is_told():
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    from ssl_med.data import engines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "PATIENCE", 0.5)
        with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
            list(engine_of("dask", scheduler="tcp://127.0.0.1:1")(double, [1], lost))
