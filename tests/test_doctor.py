"""``ssl-med doctor``: every check is shown the fault it is there for, and must name it."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import types
from collections import namedtuple
from pathlib import Path

import pytest

from ssl_med.denied import refuse_denied
from ssl_med.verbs import doctor as doctor_module
from ssl_med.verbs.doctor import Check, doctor

Usage = namedtuple("Usage", "total used free")


def by_name(checks):
    return {check.name: check for check in checks}


@pytest.fixture
def versions(monkeypatch):
    """Pretend that the named distributions are installed in these versions (None: not installed)."""
    real = importlib.metadata.version

    def pretend(**fakes):
        def version(name):
            key = name.replace("-", "_")
            if key not in fakes:
                return real(name)
            if fakes[key] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return fakes[key]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.fixture
def requirements(monkeypatch):
    """Pretend that ssl_med is installed and declares these requirements."""

    def pretend(*lines, python=">=3.11"):
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": python})
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))

    return pretend


def test_the_report_prints_every_check_and_returns_it(tmp_path, capsys):
    checks = doctor(tmp_path)
    printed = capsys.readouterr().out
    assert {"python", "torchvision", "accelerator", "cores", "memory", "free disk"} <= {c.name for c in checks}
    assert all(check.found in printed and check.advice in printed for check in checks)
    assert all(check.advice for check in checks if check.status != "ok")
    assert str(tmp_path) not in printed  # a folder's name may identify a patient
    assert list(tmp_path.iterdir()) == []


def test_torch_is_imported_only_when_asked_for():
    code = "import ssl_med.verbs.doctor, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(doctor_module.__file__).parents[2])


# --- versions -------------------------------------------------------------------------------------------------------


def test_without_an_installation_the_floors_come_from_the_checkout(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    python, lines = doctor_module.declared()
    assert python.startswith(">=3")
    assert any(line.startswith("torch>=") for line in lines)


def test_an_unsupported_python_fails(requirements):
    requirements(python=">=3.99")
    (check,) = doctor_module.check_python()
    assert check.status == "fail"
    assert ">=3.99" in check.advice


def test_floors_are_read_from_the_metadata(requirements, versions):
    requirements("numpy>=1.26", "pillow>=11")
    versions(numpy="1.25.2", pillow="11.0.0")
    (check,) = doctor_module.check_dependencies()
    assert check == Check("dependency numpy", "fail", "1.25.2", "pip install 'numpy>=1.26'")
    versions(numpy="1.26.0", pillow="11.0.0")
    (check,) = doctor_module.check_dependencies()
    assert (check.status, check.found[0]) == ("ok", "2")


def test_a_missing_requirement_fails(requirements, versions):
    requirements("timm>=1.0.20")
    versions(timm=None)
    (check,) = doctor_module.check_dependencies()
    assert (check.status, check.found) == ("fail", "not installed")


def test_extras_may_be_missing_but_not_too_old(requirements, versions):
    requirements('wandb>=0.19; extra == "track"', 'ssl_med[track]; extra == "test"')
    versions(wandb=None)
    assert [check.status for check in doctor_module.check_dependencies()] == ["ok"]
    versions(wandb="0.10")
    assert [(c.name, c.status) for c in doctor_module.check_dependencies()] == [("dependency wandb", "warn")]


def test_a_requirement_for_another_system_is_passed_over(requirements, versions):
    requirements('pywin32>=300; sys_platform == "no such system"')
    versions(pywin32=None)
    assert [check.status for check in doctor_module.check_dependencies()] == ["ok"]


@pytest.mark.parametrize(
    ("package", "version", "advisory"),
    [
        ("lightning", "2.6.2", "GHSA-w37p-236h-pfx3"),
        ("lightning", "2.6.3", "GHSA-w37p-236h-pfx3"),
        ("pytorch_lightning", "2.6.2", "GHSA-w37p-236h-pfx3"),
        ("pytorch_lightning", "2.6.3", "GHSA-w37p-236h-pfx3"),
        ("pytorch_lightning", "2.6.0", "CVE-2026-31221"),
        ("torch", "2.9.1+cpu", "CVE-2026-24747"),
        ("monai", "1.5.2", "GHSA-89gg-p5r5-q6r4"),
        ("pydicom", "3.0.1", "CVE-2026-32711"),
    ],
)
def test_a_version_with_an_advisory_is_refused(versions, package, version, advisory):
    versions(**{package: version})
    (check,) = doctor_module.check_denied()
    assert check.status == "fail"
    assert advisory in check.found
    assert version in check.found


@pytest.mark.parametrize(
    ("package", "version"),
    [("lightning", "2.6.6"), ("pytorch_lightning", "2.6.6"), ("torch", "2.10.0+cu132"), ("pydicom", "3.0.2")],
)
def test_versions_with_the_fix_pass(versions, package, version):
    versions(**{package: version})
    assert [check.status for check in doctor_module.check_denied()] == ["ok"]


@pytest.fixture
def beside(tmp_path):
    """Run Python with a distribution installed in this version before all others; (exit code, what was said)."""

    def attempt(code, name, version):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        places = os.pathsep.join([str(tmp_path), str(Path(doctor_module.__file__).parents[2])])
        names = {**os.environ, "PYTHONPATH": places}
        done = subprocess.run([sys.executable, "-c", code], env=names, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return attempt


@pytest.mark.parametrize(
    ("name", "version", "advisory"),
    [("lightning", "2.6.3", "GHSA-w37p-236h-pfx3"), ("torch", "2.9.1+cpu", "CVE-2026-24747")],
)
def test_the_import_is_refused_beside_a_known_bad_version(beside, name, version, advisory):
    code, said = beside("import ssl_med", name, version)
    assert code == 1
    assert f"ImportError: ssl_med does not run beside {name} {version} ({advisory}" in said


def test_the_import_goes_on_beside_good_versions_and_for_the_doctor(beside):
    light = "; assert not {'torch', 'importlib.metadata'} & set(sys.modules)"
    assert beside("import ssl_med, sys" + light, "lightning", "2.6.6") == (0, "")
    assert beside("import sys; sys.argv = ['ssl-med', 'doctor']; import ssl_med", "torch", "2.0") == (0, "")


def test_the_import_is_refused_by_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    with pytest.raises(ImportError, match=r"Python 3\.11 or newer"):
        refuse_denied()


def test_a_known_bad_version_reaches_the_whole_report(versions, tmp_path, capsys):
    versions(lightning="2.6.3")
    assert by_name(doctor(tmp_path))["advisory lightning"].status == "fail"
    assert "GHSA-w37p-236h-pfx3" in capsys.readouterr().out


# --- torch and the device -------------------------------------------------------------------------------------------


def test_a_torch_that_does_not_import_ends_the_torch_checks(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor_module.check_torch()
    assert (check.name, check.status) == ("torch", "fail")


def test_a_torchvision_for_another_torch_fails(monkeypatch):
    import torch
    import torchvision.ops

    def no_operator(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nmore lines")

    monkeypatch.setattr(torchvision.ops, "nms", no_operator)
    (check,) = doctor_module.check_torchvision(torch)
    assert check.status == "fail"
    assert check.found.endswith("operator torchvision::nms does not exist")


def test_a_torchvision_that_computes_nonsense_fails(monkeypatch):
    import torch
    import torchvision.ops

    monkeypatch.setattr(torchvision.ops, "nms", lambda *_: torch.tensor([0, 1, 2]))
    (check,) = doctor_module.check_torchvision(torch)
    assert check.status == "fail"


def fake_torch(cuda=False, mps=False, bf16=True):
    """A torch that only answers what devices it has."""
    device = types.SimpleNamespace(name="H100", total_memory=80e9)
    gpu = types.SimpleNamespace(
        is_available=lambda: cuda,
        device_count=lambda: 2,
        get_device_properties=lambda _: device,
        is_bf16_supported=lambda including_emulation: bf16,
    )
    cpu = types.SimpleNamespace(get_cpu_capability=lambda: "AVX2")
    backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: mps), cpu=cpu)
    version = types.SimpleNamespace(cuda="13.2", hip=None)
    return types.SimpleNamespace(cuda=gpu, backends=backends, version=version, __version__="2.15.0")


def test_accelerators_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module, "NVIDIA_DRIVER", tmp_path / "absent")
    monkeypatch.setattr(doctor_module, "CPU_INFO", tmp_path / "absent")
    gpu = by_name(doctor_module.check_accelerator(fake_torch(cuda=True)))
    assert gpu["accelerator"].found == "2 x H100, 80 GB, CUDA 13.2"
    assert gpu["bf16"].status == "ok"
    assert by_name(doctor_module.check_accelerator(fake_torch(cuda=True, bf16=False)))["bf16"].status == "warn"
    assert by_name(doctor_module.check_accelerator(fake_torch(mps=True)))["accelerator"].found == "mps"
    cpu = by_name(doctor_module.check_accelerator(fake_torch()))
    assert (cpu["accelerator"].status, cpu["bf16"].status) == ("warn", "warn")


def test_a_driver_that_torch_cannot_use_fails(monkeypatch, tmp_path):
    (tmp_path / "version").write_text("NVRM version: 470")
    monkeypatch.setattr(doctor_module, "NVIDIA_DRIVER", tmp_path / "version")
    (check,) = doctor_module.check_accelerator(fake_torch())
    assert check.status == "fail"


def test_bf16_of_the_processor_is_read_from_its_flags(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n")
    monkeypatch.setattr(doctor_module, "CPU_INFO", tmp_path / "cpuinfo")
    assert doctor_module.cpu_bf16_flags() == ["amx_bf16", "avx512_bf16"]
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f\n")
    assert doctor_module.cpu_bf16_flags() == []


def test_cores_are_those_of_the_container(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert doctor_module.usable_cores() == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert doctor_module.usable_cores() == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor_module.usable_cores() == 8


def test_more_threads_than_cores_are_warned_of():
    (check,) = doctor_module.check_threads(threads=16, cores=4)
    assert (check.status, check.advice) == ("warn", "set OMP_NUM_THREADS=4")
    assert [check.status for check in doctor_module.check_threads(threads=4, cores=4)] == ["ok"]


# --- memory and disks -----------------------------------------------------------------------------------------------


def test_little_memory_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2 * 10**9}\n")
    (check,) = doctor_module.check_memory()
    assert (check.status, check.found) == ("warn", "2.0 GB")


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [(64 * 2**20, 64 * 2**20, "fail"), (8 * 2**30, 2**20, "warn"), (8 * 2**30, 8 * 2**30, "ok")],
)
def test_a_tiny_shared_memory_fails(monkeypatch, tmp_path, total, free, status):
    monkeypatch.setattr(doctor_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: Usage(total, total - free, free))
    (check,) = doctor_module.check_shared_memory()
    assert check.status == status


def test_a_system_without_the_folder_has_no_shared_memory_check(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module, "SHARED_MEMORY", tmp_path / "absent")
    assert list(doctor_module.check_shared_memory()) == []


def test_the_output_folder_is_probed_but_not_made(tmp_path):
    checks = by_name(doctor_module.check_out(tmp_path / "runs" / "first"))
    assert checks["output folder"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    checks = list(doctor_module.check_out(tmp_path / "file" / "run"))
    assert [check.status for check in checks] == ["fail"]


def test_an_output_folder_that_refuses_writing_fails(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (check,) = doctor_module.check_out(tmp_path)
    assert check.status == "fail"
    assert "Permission denied" in check.found
    assert str(tmp_path) not in check.found


def test_a_full_disk_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: Usage(10**12, 0, 9 * 10**9))
    assert by_name(doctor_module.check_out(tmp_path))["free disk"].status == "warn"
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10 * 10**9))
    assert by_name(doctor_module.check_out(tmp_path))["free disk"].status == "ok"


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a second file system that is always there")
def test_a_temp_folder_on_another_disk_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc")
    assert by_name(doctor_module.check_out(tmp_path))["temp folder"].status == "warn"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert by_name(doctor_module.check_out(tmp_path))["temp folder"].status == "ok"


@pytest.mark.parametrize(
    ("soft", "hard", "status", "advice"),
    [(256, 1024, "warn", "ulimit -n 1024"), (1024, 65536, "warn", "ulimit -n 4096"), (4096, 4096, "ok", "")],
)
def test_a_low_limit_of_open_files_is_warned_of(monkeypatch, soft, hard, status, advice):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    (check,) = doctor_module.check_open_files()
    assert (check.status, check.advice) == (status, advice)


# --- habits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "wandb", "status"), [(None, "0.31.0", "warn"), ("offline", "0.31.0", "ok"), (None, None, "ok")]
)
def test_a_tracker_that_would_send_is_warned_of(monkeypatch, versions, mode, wandb, status):
    versions(wandb=wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert [check.status for check in doctor_module.check_network()] == [status]


@pytest.mark.parametrize(("off", "status"), [(True, "warn"), (False, "ok")])
def test_unwritten_bytecode_is_warned_of(monkeypatch, off, status):
    monkeypatch.setattr(sys, "dont_write_bytecode", off)
    assert [check.status for check in doctor_module.check_bytecode()] == [status]
