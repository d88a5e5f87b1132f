"""What a measurement was made on and with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app import __version__

_PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "numpy")


def environment() -> dict[str, Any]:
    """Chip, cores, memory, versions and commit."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ember": __version__,
    }
    if commit := _commit():
        found["commit"] = commit
    versions = {package: version_of(package) for package in _PACKAGES}
    return found | {package: told for package, told in versions.items() if told}


def version_of(package: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def device() -> dict[str, Any]:
    """What MLX computes on, and the CPU kernels' instructions and threads where they run."""
    import mlx.core as mx

    from kvcache import Backend
    from kvcache.native.library import library

    backend = Backend.AUTO.resolve()
    if backend is Backend.CPU:
        kernels = library()
        return {"device": f"cpu, {kernels.instructions}", "threads": kernels.threads}
    if backend is Backend.GPU:
        return {"device": str(mx.device_info().get("device_name", "gpu"))}
    return {"device": "cpu, plain MLX"}


def physical_cores() -> int:
    """Cores that this process may use, their hardware threads not counted apart."""
    if platform.system() == "Darwin":
        return int(said("sysctl", "-n", "hw.physicalcpu") or os.cpu_count() or 1)
    if platform.system() != "Linux":
        return os.cpu_count() or 1
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    paths = {cpu: Path(siblings.format(cpu)) for cpu in os.sched_getaffinity(0)}
    return len({path.read_text() if path.exists() else cpu for cpu, path in paths.items()})


def _processor() -> str:
    if platform.system() == "Darwin":
        return said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """Of the source tree, with a plus where it was changed since; empty outside of one."""
    git = ("git", "-C", str(Path(__file__).parent))
    # An installed copy may lie inside a repository that is not its own.
    if not said(*git, "ls-files", Path(__file__).name):
        return ""
    commit = said(*git, "rev-parse", "--short=12", "HEAD")
    return f"{commit}+" if said(*git, "status", "--porcelain", "-uno", "..") else commit


def said(*command: str) -> str:
    """What a command prints on stdout; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if not done.returncode else ""
