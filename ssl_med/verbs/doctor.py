"""``ssl-med doctor``: is this machine fit to train on, and if not, what to do about it. Nothing is changed or sent."""

import importlib.metadata
import math
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ssl_med.denied import DENIED

GB, GIB = 1e9, 2**30
LEAST_DISK_GB, LEAST_MEMORY_GB, LEAST_FILES = 10, 8, 4096
SHARED_MEMORY = Path("/dev/shm")
CPU_INFO = Path("/proc/cpuinfo")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``warn``: it works, but slower or with a risk; ``fail``: do not train before it is mended.
        found: what was found.
        advice: what to do; empty when there is nothing to do.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(out: str | Path | None = None) -> list[Check]:
    """Check versions, accelerator, memory and disks, and print what was found and what to do.

    Args:
        out: the folder a run would write into; it need not exist and is not made. None is the current folder.

    Returns:
        All checks; the command line exits with 1 if one of them has failed.
    """
    checks = [
        *check_python(),
        *check_dependencies(),
        *check_denied(),
        *check_torch(),
        *check_memory(),
        *check_shared_memory(),
        *check_out(Path.cwd() if out is None else Path(out)),
        *check_open_files(),
        *check_network(),
        *check_bytecode(),
    ]
    print(table(checks))
    return checks


def table(checks: list[Check]) -> str:
    """The report as text: one line per check, the advice below it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<5} {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.advice}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    return "\n".join([*lines, "", ", ".join(f"{number} {status}" for status, number in counts.items())])


# --- versions -------------------------------------------------------------------------------------------------------


def declared() -> tuple[str, list[str]]:
    """The supported Python versions and the requirements, from the installed package or the checkout it runs from."""
    try:
        python = importlib.metadata.metadata("ssl_med")["Requires-Python"]
        return python, importlib.metadata.requires("ssl_med") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        return project["requires-python"], project["dependencies"]


def check_python() -> Iterator[Check]:
    """Python is one of the supported versions."""
    supported, found = declared()[0], platform.python_version()
    if SpecifierSet(supported).contains(found, prereleases=True):
        yield Check("python", "ok", found)
    else:
        yield Check("python", "fail", found, f"make an environment with Python {supported}")


def installed(name: str) -> str | None:
    """The version of a distribution, read without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_dependencies() -> Iterator[Check]:
    """Every requirement of the package is installed in a version it allows; an extra only if it is there."""
    good, bad = 0, 0
    for requirement in map(Requirement, declared()[1]):
        version, extra = installed(requirement.name), "extra" in str(requirement.marker or "")
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name == "ssl_med" or not (applies or (extra and version)):
            continue
        if version and requirement.specifier.contains(version, prereleases=True):
            good += 1
            continue
        bad += 1
        status = "warn" if extra else "fail"
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        yield Check(f"dependency {requirement.name}", status, version or "not installed", advice)
    if not bad:
        yield Check("dependencies", "ok", f"{good} installed in a version that is supported")


def check_denied() -> Iterator[Check]:
    """No installed version is on the list of those that must not run."""
    bad = 0
    for advisory in DENIED:
        version = installed(advisory.package)
        if version and SpecifierSet(advisory.versions).contains(version, prereleases=True):
            bad += 1
            advice = f"{advisory.what}; pip install --upgrade {advisory.package}"
            yield Check(f"advisory {advisory.package}", "fail", f"{version} is hit by {advisory.number}", advice)
    if not bad:
        yield Check("advisories", "ok", f"none of {len(DENIED)} known ones applies")


# --- torch and the device -------------------------------------------------------------------------------------------


def check_torch() -> Iterator[Check]:
    """Torch imports, fits torchvision, sees the accelerator and uses no more threads than there are cores."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "fail", f"cannot be imported: {_first_line(error)}", "pip install --force-reinstall torch")
        return
    yield from check_torchvision(torch)
    yield from check_accelerator(torch)
    yield from check_threads(torch.get_num_threads(), usable_cores())


def check_torchvision(torch: Any) -> Iterator[Check]:
    """The compiled operators of torchvision load beside this torch; timm and lightly do not import without them."""
    found = f"torch {torch.__version__}, torchvision {installed('torchvision')}"
    try:
        import torchvision.ops

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        advice = "install both in one command from one index: pip install --force-reinstall torch torchvision"
        yield Check("torchvision", "fail", f"{found} do not fit: {_first_line(error)}", advice)
        return
    if kept == [0, 2]:
        yield Check("torchvision", "ok", found)
    else:
        yield Check("torchvision", "fail", f"{found}: nms keeps {kept}, not [0, 2]", "reinstall both")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def check_accelerator(torch: Any) -> Iterator[Check]:
    """The fastest device torch can use, and whether it computes in bf16."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found = f"{torch.cuda.device_count()} x {device.name}, {device.total_memory / GB:.0f} GB"
        yield Check("accelerator", "ok", f"{found}, CUDA {torch.version.cuda or torch.version.hip}")
        yield _bf16(torch.cuda.is_bf16_supported(including_emulation=False), "this GPU")
    elif torch.backends.mps.is_available():
        yield Check("accelerator", "ok", "mps")
    elif NVIDIA_DRIVER.exists():
        found = f"an NVIDIA driver is loaded, but torch {torch.__version__} cannot use it"
        advice = "install the torch build for your driver (uv pip install --torch-backend=auto torch torchvision)"
        yield Check("accelerator", "fail", found, advice)
    else:
        yield Check("accelerator", "warn", "none, CPU only", "enough for smoke runs and tests; pretrain on a GPU")
        yield _bf16(bool(cpu_bf16_flags()), f"this CPU ({torch.backends.cpu.get_cpu_capability()})")


def _bf16(native: bool, device: str) -> Check:
    if native:
        return Check("bf16", "ok", f"computed natively by {device}")
    return Check("bf16", "warn", f"not native on {device}", "time one epoch with precision 32-true as well")


def cpu_bf16_flags() -> list[str]:
    """The processor's instructions for bf16 products (x86: AVX512-BF16, AMX; ARM: BF16), as Linux lists them."""
    words = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
    return sorted(words & {"avx512_bf16", "amx_bf16", "bf16"})


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and the quota of its control group (a container's limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = CONTROL_GROUP / "cpu.max"
    quota, period = limit.read_text().split() if limit.exists() else ("max", "1")
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def check_threads(threads: int, cores: int) -> Iterator[Check]:
    """Torch runs no more threads than the process has cores; more of them wait for one another."""
    found = f"{cores} usable cores, {threads} torch threads"
    if threads <= cores:
        yield Check("cores", "ok", found)
    else:
        yield Check("cores", "warn", found, f"set OMP_NUM_THREADS={cores}")


# --- memory and disks -----------------------------------------------------------------------------------------------


def check_memory() -> Iterator[Check]:
    """Main memory, within the control group's limit."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    limit = CONTROL_GROUP / "memory.max"
    allowed = limit.read_text().strip() if limit.exists() else "max"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = min(total, total if allowed == "max" else int(allowed)) / GB
    if usable >= LEAST_MEMORY_GB:
        yield Check("memory", "ok", f"{usable:.0f} GB")
    else:
        yield Check("memory", "warn", f"{usable:.1f} GB", f"{LEAST_MEMORY_GB} GB or more, or fewer loader workers")


def check_shared_memory() -> Iterator[Check]:
    """Room for the batches that loader workers hand over; containers start with 64 MB."""
    if not SHARED_MEMORY.exists():  # only Linux has the folder
        return
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total < GIB:
        yield Check(
            "shared memory", "fail", found, "start the container with --shm-size=8g, or mount a larger /dev/shm"
        )
    elif free < GIB:
        yield Check("shared memory", "warn", found, "another program fills /dev/shm: end it, or use fewer workers")
    else:
        yield Check("shared memory", "ok", found)


def check_out(out: Path) -> Iterator[Check]:
    """The output folder can be written, has room, and shares its file system with the temp folder."""
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Check("output folder", "fail", f"cannot be written: {error.strerror}", "choose another, or make it yours")
        return
    yield Check("output folder", "ok", "writable")
    yield _free_disk(shutil.disk_usage(nearest).free / GB)
    if nearest.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        yield Check("temp folder", "ok", "on the same file system as the output folder")
    else:
        advice = (
            "set TMPDIR to a folder beside it: other tools stage files there, and a move across disks can be cut short"
        )
        yield Check("temp folder", "warn", "not on the file system of the output folder", advice)


def _free_disk(free: float) -> Check:
    if free >= LEAST_DISK_GB:
        return Check("free disk", "ok", f"{free:.0f} GB")
    advice = f"{LEAST_DISK_GB} GB hold the checkpoints of a ViT-L; make room, or choose another disk"
    return Check("free disk", "warn", f"{free:.1f} GB", advice)


def check_open_files() -> Iterator[Check]:
    """Loader workers hold a file handle per tensor they pass on."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        yield Check("open files", "ok", f"limit {soft}")
    else:
        reach = LEAST_FILES if hard == resource.RLIM_INFINITY else min(hard, LEAST_FILES)
        yield Check("open files", "warn", f"limit {soft}", f"ulimit -n {reach}")


# --- habits ---------------------------------------------------------------------------------------------------------


def check_network() -> Iterator[Check]:
    """No run needs a network; the one tracker that would use it unasked is told not to."""
    mode = os.environ.get("WANDB_MODE", "online")
    if installed("wandb") is None or mode in ("offline", "disabled", "dryrun"):
        yield Check("network", "ok", "not needed, and no tracker will use it")
    else:
        found = f"not needed, but wandb would send runs out (WANDB_MODE is {mode})"
        yield Check("network", "warn", found, "export WANDB_MODE=offline")


def check_bytecode() -> Iterator[Check]:
    """Compiled modules are kept; without them every process compiles torch and Lightning again."""
    if sys.dont_write_bytecode:
        yield Check(
            "bytecode", "warn", "not written: each start takes about twice as long", "unset PYTHONDONTWRITEBYTECODE"
        )
    else:
        yield Check("bytecode", "ok", "kept")
