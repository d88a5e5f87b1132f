"""What a server does, on the terminal that started it: figures that stay, and lines above them.

Knows figures and lines alone. Where stderr is no terminal there are lines alone.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.console import note
from app.inert import inert_line
from app.serve.server_figures import Figures
from app.streams import styled

_PER_SECOND = 4


@contextmanager
def live_view(figures: Callable[[], Figures]) -> Iterator[Callable[[str], None]]:
    """Show figures as they change; gives what takes a line for each request."""
    if not sys.stderr.isatty():
        yield note
        return
    console = Console(file=styled(sys.stderr), highlight=False)
    with Live(
        get_renderable=lambda: table(figures()),
        console=console,
        refresh_per_second=_PER_SECOND,
        redirect_stdout=False,
        redirect_stderr=False,
    ):

        def line(text: str) -> None:
            console.print(Text(inert_line(text), style="dim"), soft_wrap=True)

        yield line


def table(now: Figures) -> Table:
    """Figures in two columns."""
    made = Table.grid(padding=(0, 2))
    for name, value in rows(now):
        made.add_row(Text(name, style="dim"), Text(inert_line(value)))
    return made


def rows(now: Figures) -> list[tuple[str, str]]:
    """What is shown: names and values."""
    tiers = ", ".join(f"{count:,} {tier}" for tier, count in now.tokens.items())
    hits = f"{now.hits} of {now.requests} requests, {now.cached_tokens:,} tokens"
    return [
        ("running", f"{now.running} of {now.places}, {now.waiting} waiting"),
        ("speed", f"{now.tokens_per_second:,.1f} tokens/s"),
        ("tokens", tiers),
        (
            "memory",
            f"{_mib(now.running_bytes)} + {_mib(now.kept_bytes)} kept of "
            f"{_mib(now.budget_bytes)} MiB",
        ),
        ("kept", f"{now.kept} prompts; found for {hits}"),
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"
