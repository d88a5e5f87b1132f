"""The tests that inject a fault, by its kind, and a run of them all: `make faults`."""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.reliability.record import Row, add_flag, keep

ROOT = Path(__file__).parents[2]
FAULTS: Mapping[str, tuple[str, ...]] = {
    "full disk": (
        "tests/app/chat/test_controller.py::test_a_full_disk_is_told_once_and_the_chat_goes_on",
        "tests/app/chat/test_settings.py::test_a_full_disk_leaves_the_file_as_it_was",
        "tests/app/test_private.py::test_a_full_disk_leaves_the_old_file",
        "tests/app/tui/test_commands.py::test_a_full_disk_leaves_no_half_of_an_export",
        "tests/app/wake/test_damage.py::test_a_full_disk_is_told_once_and_leaves_nothing",
        "tests/models/finding/test_hub_download.py::test_a_full_disk_keeps_what_it_holds",
    ),
    "read-only home": (
        "tests/app/test_read_only_home.py",
        "tests/models/finding/test_hub_download.py::test_a_cache_that_cannot_be_written",
    ),
    "killed or broken download": (
        "tests/models/finding/test_hub_download.py::test_a_download_that_was_killed_goes_on",
        "tests/models/finding/test_hub_download.py::test_what_was_begun_with_other_bytes_is_begun_anew",
        "tests/models/finding/test_fetch.py::test_a_damaged_download_is_taken_out_again",
    ),
    "killed compiler": (
        "tests/kvcache/native/test_build.py::test_a_killed_compiler_is_one_line_and_leaves_nothing",
        "tests/kvcache/native/test_build.py::test_a_killed_process_leaves_nothing_in_the_way",
        "tests/kvcache/native/test_build.py::test_a_damaged_library_is_never_loaded_but_built_again",
    ),
    "two programs at once": (
        "tests/app/sessions/test_store.py::test_two_windows_never_interleave_in_one_chat",
        "tests/app/sessions/test_store.py::test_programs_that_start_at_once_make_one_file",
        "tests/models/finding/test_hub_download.py::test_two_programs_fetch_a_file_once",
    ),
    "signals": (
        "tests/kills/test_kills.py",
        "tests/app/test_leaving.py",
        "tests/app/test_new_file.py::test_a_kill_amid_a_write_leaves_nothing_in_the_way",
        "tests/app/sessions/test_store.py::test_what_was_saved_survives_a_kill",
        "tests/app/wake/test_damage.py::test_a_kill_at_any_moment_leaves_nothing_that_is_stumbled_over",
    ),
    "clock that jumps": (
        "tests/app/sessions/test_store.py::test_a_clock_set_back_changes_no_order",
    ),
    "database: newer, locked, damaged": (
        "tests/app/sessions/test_store.py::test_a_newer_format_is_refused",
        "tests/app/sessions/test_store.py::test_a_locked_file_loses_nothing",
        "tests/app/sessions/test_file.py",
    ),
    "damaged files": (
        "tests/models/test_damaged.py",
        "tests/app/wake/test_damage.py",
        "tests/kvcache/test_saved.py",
        "tests/app/test_changed_files.py",
    ),
}


def main() -> int:
    """Returns 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(FAULTS))
    add_flag(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(FAULTS):
        parser.error(f"no kind {min(unknown)}: there are {', '.join(FAULTS)}")
    faults = 0
    for kind in arguments.kinds or FAULTS:
        row = _row(kind)
        print(f"{kind}: {row.count} tests, {row.faults} failed", flush=True)
        keep(arguments.record, row)
        faults += row.faults
    return int(faults > 0)


def _row(kind: str) -> Row:
    began, counted = time.monotonic(), _Counted()
    # In this process, so that nothing is told by a text that must be read again.
    pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", *FAULTS[kind]], plugins=[counted])
    return Row(
        program="faults",
        what=kind,
        count=counted.passed + counted.failed,
        unit="tests",
        seconds=time.monotonic() - began,
        faults=counted.failed,
        command=f"python -m tests.reliability.faults '{kind}'",
    )


class _Counted:
    """Counts what pytest tells its plugins."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One for each test, and for what failed around it."""
        self.failed += report.failed
        self.passed += report.when == "call" and report.passed


if __name__ == "__main__":
    sys.exit(main())
