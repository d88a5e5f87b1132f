"""Textual's terminal driver, made to outlive bytes that are not UTF-8.

A terminal set to another encoding sends such bytes for a letter with an accent;
Textual 8.2's reader dies of them, and takes the program along.
"""

from contextlib import suppress

from textual.drivers.linux_driver import LinuxDriver


class ForgivingDriver(LinuxDriver):
    """Drops what cannot be decoded and reads on."""

    def run_input_thread(self) -> None:
        """Read input until the program ends."""
        while not self.exit_event.is_set():
            with suppress(UnicodeDecodeError):
                super().run_input_thread()
