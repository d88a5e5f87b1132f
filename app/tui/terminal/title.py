"""The terminal's title; a terminal that has none ignores it."""

from typing import Any

from textual.app import App


def set_title(app: App[Any], title: str) -> None:
    """Set the title of the terminal's window."""
    _write(app, f"\x1b]2;{title}\x07")


def keep_title(app: App[Any]) -> None:
    """Have the terminal remember its present title."""
    _write(app, "\x1b[22;2t")


def restore_title(app: App[Any]) -> None:
    """Give the remembered title back."""
    _write(app, "\x1b[23;2t")


def _write(app: App[Any], sequence: str) -> None:
    if app._driver is not None and not app.is_headless:
        app._driver.write(sequence)
