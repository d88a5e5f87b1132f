"""Textual's terminal driver with an input of our own: see `terminal_input`."""

import os
from select import select

from textual.drivers.linux_driver import LinuxDriver

from app.tui.terminal_input import TerminalInput

_READ_BYTES = 1 << 16
_WAIT_SECONDS = 0.1


class ForgivingDriver(LinuxDriver):
    """Reads whatever a terminal may send."""

    def run_input_thread(self) -> None:
        """Read input until the program ends, or the terminal does."""
        source = TerminalInput(debug=self._debug)
        while not self.exit_event.is_set():
            if select([self.fileno], [], [], _WAIT_SECONDS)[0]:
                data = os.read(self.fileno, _READ_BYTES)
                if not data:
                    return
                for event in source.feed(data):
                    self.process_message(event)
            for event in source.tick():
                self.process_message(event)
