"""A long chat with a real model: `python -m tests.app.tui.long_chat`.

Talks on a pseudo-terminal until the cache has seen so many tokens, with keys
pressed all the while. After each answer a line tells the memory of the process
and whether the panes show what the cache itself says of its tiers.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app import memory, units
from app.chat.settings import Settings
from app.chat.state import Draft, Phase
from app.job import Job
from app.service.live_service import LiveService
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from app.tui.terminal.garbage import collected_at_rest
from app.tui.widgets.cache_pane import CachePane
from kvcache import CacheConfig
from kvcache.errors import EmberError
from kvcache.stats import CacheStats, sum_layers
from models.finding.catalogue import DEFAULT_NAME
from tests.app.tui.timed_terminal import Press, TimedTerminal, quantile

_TEXT = Path(__file__).parents[3] / "assets" / "kjv_acts_romans.txt"
_QUESTION = "Here is a part of a long text. Tell in your own words what happens in it.\n\n"
_LIMIT = 1800.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What stood there when an answer had ended. at: on the clock of the presses."""

    at: float
    tokens: int
    resident: int
    held_bytes: int
    allocated_bytes: int
    decode_tps: float
    panes_right: bool


class WatchedService(LiveService):
    """Also tells what the caches say at this moment, not what the screen was told."""

    def ask_caches(self) -> Job[CacheStats]:
        """The figures of all layers, as one job's only item."""

        def ask() -> Iterator[CacheStats]:
            assert self._reader is not None
            assert self._reader.engine is not None
            yield sum_layers(self._reader.engine.layer_stats())

        return self._thread.submit(ask)


class LongChat:
    """Asks on when an answer has ended, until the cache has seen `tokens`."""

    def __init__(self, app: ChatApp, service: WatchedService, *, tokens: int, paste: int) -> None:
        self._app, self._service = app, service
        self._tokens, self._paste = tokens, paste
        self._text, self._at = _TEXT.read_text(encoding="utf-8"), 0
        self._told: Job[CacheStats] | None = None

    def step(self, report: Path) -> None:
        """Go on as far as is possible now; writes a line to `report` after each answer."""
        chat = self._app.chat
        if chat.problem is not None:
            raise EmberError(f"{chat.problem.title}: {chat.problem.cause}")
        if chat.phase is not Phase.READY:
            return
        if chat.last is None:
            self._ask()
        elif self._told is None:
            self._told = self._service.ask_caches()
        elif items := self._told.poll():
            self._told = None
            self._write(items[0], report)
            if items[0].total < self._tokens:
                self._ask()
            else:
                self._app.exit()

    def _ask(self) -> None:
        piece = self._text[self._at : self._at + self._paste]
        self._at += self._paste
        self._app.chat.ask(Draft(text=_QUESTION + piece))

    def _write(self, stats: CacheStats, report: Path) -> None:
        last = self._app.chat.last
        assert last is not None
        turn = Turn(
            at=time.monotonic(),
            tokens=stats.total,
            resident=memory.resident(),
            held_bytes=stats.held_bytes,
            allocated_bytes=stats.allocated_bytes,
            decode_tps=last.decode_tps,
            panes_right=self._pane_shows(stats),
        )
        with report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(turn)) + "\n")

    def _pane_shows(self, stats: CacheStats) -> bool:
        """Whether the pane has the tokens and bytes of every tier."""
        pane = self._app.screen_stack[1].query_one(CachePane)
        rows = [line.split() for line in pane.render().plain.splitlines()]
        shown = {row[1]: row for row in rows if len(row) > 1}
        tiers = {
            "sink": (stats.sink, stats.sink_bytes),
            "hot": (stats.hot, stats.hot_bytes),
            "cold": (stats.cold, stats.cold_bytes),
        }
        right = all(
            [shown[name][2], " ".join(shown[name][4:6])] == [str(tokens), units.size(size)]
            for name, (tokens, size) in tiers.items()
        )
        return right and shown["gone"][2] == str(stats.evicted)


def child(args: argparse.Namespace) -> None:
    """The chat; its turns go to the report."""
    service = WatchedService(CacheConfig(max_tokens=args.ctx))
    report: Path = args.child
    store = SessionStore.open(report.with_name("chats.db"))
    settings = Settings(max_tokens=args.max_tokens)
    try:
        app = ChatApp(service, model=args.model, settings=settings, store=store)
        talk = LongChat(app, service, tokens=args.tokens, paste=args.paste)
        # After the next drawing of the figures, so that those on the screen are compared.
        app.call_later(lambda: app.set_interval(0.5, lambda: talk.step(report)))
        with collected_at_rest():
            app.run()
    finally:
        service.close()
        store.close()


def measure(arguments: Sequence[str]) -> tuple[list[Turn], list[Press]]:
    """Run the chat and press keys until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "turns.jsonl"
        with TimedTerminal(
            "tests.app.tui.long_chat", [*arguments, "--child", str(report)]
        ) as terminal:
            terminal.drain(time.monotonic() + 60, until=b"reading")
            presses = terminal.press_keys(time.monotonic() + _LIMIT)
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        return [Turn(**json.loads(line)) for line in lines], presses


def table(turns: Sequence[Turn], presses: Sequence[Press]) -> str:
    """A line a turn; the keys are those pressed since the turn before."""
    lines = [
        "  tokens   memory     cache   allocated  tok/s   keys  p50 ms  p99 ms  max ms  panes",
    ]
    since = 0.0
    for turn in turns:
        keys = [press for press in presses if since < press.at <= turn.at]
        since = turn.at
        p50, p99, worst = (1000 * quantile(keys, share) for share in (0.5, 0.99, 1.0))
        lines.append(
            f"{turn.tokens:8} {units.size(turn.resident):>8} {units.size(turn.held_bytes):>9} "
            f"{units.size(turn.allocated_bytes):>11} {turn.decode_tps:6.1f} {len(keys):6} "
            f"{p50:7.1f} {p99:7.1f} {worst:7.1f}  {'right' if turn.panes_right else 'WRONG'}"
        )
    p99 = 1000 * quantile(presses, 0.99)
    lines.append(f"{len(turns)} turns, {len(presses)} keys, p99 of all {p99:.1f} ms")
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or be the program that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default=DEFAULT_NAME)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--paste", type=int, default=5000, help="letters of text in each question")
    parser.add_argument("--max-tokens", type=int, default=400, help="of each answer")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args)
        return
    given = {"model": args.model, "ctx": args.ctx, "tokens": args.tokens, "paste": args.paste}
    arguments = [f"--{name}={value}" for name, value in given.items()]
    print(table(*measure([*arguments, f"--max-tokens={args.max_tokens}"])))


if __name__ == "__main__":
    main()
