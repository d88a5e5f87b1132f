"""The Hugging Face Hub: search it, look at a repository's files, choose one to fetch.

Sends what is typed, once the typing pauses, and nothing before. Everything is asked beside the
screen; a question that is not waited for any more is left.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TypeVar

from textual import on
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input

from app import memory, units
from app.hub_models import costs_of, runs
from app.inert import inert_line
from app.model_list import Cost, Room, outlook
from app.tui.screens.search import SearchScreen
from app.tui.text.colours import MUTED
from kvcache.errors import EmberError
from models.finding.choice import ListedFile
from models.finding.hub import HubModel
from models.finding.hub_listing import FoundRepo, listing, search
from models.finding.progress import Progress, ProgressCallback

T = TypeVar("T")

# Seconds without a key after which what is typed is searched for.
_PAUSE = 0.4
_LEAST_LETTERS = 2
_NOTHING_SENT = "What you type is sent to the Hub as a search; nothing has been sent yet."
_STYLES = {Room.FITS: "$success", Room.SMALLER: "$warning", Room.TOO_LARGE: "$error"}
_GROUP = "hub"


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """A file of a repository. cost: None while that is not known."""

    file: ListedFile
    cost: Cost | None = None

    @property
    def room(self) -> Room:
        """Whether it fits this machine."""
        return Room.UNKNOWN if self.cost is None else outlook(self.cost, memory.memory()).room


class HubScreen(SearchScreen[str | None, FoundRepo | FileRow]):
    """Ends with the spec of a file to fetch, or None.

    Enter on a repository shows its files, Esc then leads back to the search.
    """

    TITLE = "Search the Hub"
    PLACEHOLDER = "words of a model's name"
    KEYS = "⏎ show a repository's files, fetch a file · Esc back"

    def __init__(self) -> None:
        super().__init__()
        self._repos: Sequence[FoundRepo] = ()
        self._files: Sequence[FileRow] = ()
        self._repo: HubModel | None = None
        self._pause: Timer | None = None

    def find(self, text: str) -> Sequence[FoundRepo | FileRow]:
        return self._repos if self._repo is None else self._files

    def nothing(self, text: str) -> str:
        """The line below the list says it."""
        return ""

    def line(self, item: FoundRepo | FileRow) -> Content:
        return _repo_line(item) if isinstance(item, FoundRepo) else _file_line(item)

    def result(self, item: FoundRepo | FileRow) -> str | None:
        return str(item.file.hub) if isinstance(item, FileRow) else None

    def take(self, item: FoundRepo | FileRow) -> None:
        """Open a repository; end with a file, unless it cannot be run."""
        if isinstance(item, FoundRepo):
            self._enter(HubModel(repo=item.repo))
        elif item.cost is not None and item.cost.problem:
            self.say(f"cannot run: {inert_line(item.cost.problem)}", is_error=True)
        else:
            super().take(item)

    def on_mount(self) -> None:
        """Nothing is asked before something is typed."""
        super().on_mount()
        self.say(_NOTHING_SENT)

    def action_close(self) -> None:
        """From the files back to the search, from there to the models."""
        if self._repo is None:
            super().action_close()
        else:
            self._show_repos()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        """Search, once the typing pauses."""
        if self._pause is not None:
            self._pause.stop()
        text = event.value.strip()
        if len(text) < _LEAST_LETTERS:
            self._repos = ()
        else:
            self._pause = self.set_timer(_PAUSE, lambda: self._ask(partial(self._search_for, text)))
        self._show_repos()

    def _show_repos(self) -> None:
        self.workers.cancel_group(self, _GROUP)
        self._repo = None
        self._title("")
        self.refresh_list()

    def _enter(self, repo: HubModel) -> None:
        self._repo, self._files = repo, ()
        self._title(f": {inert_line(repo.repo)}")
        self._ask(partial(self._look_at, repo))

    def _title(self, more: str) -> None:
        self._box.border_title = f"{self.TITLE}{more}"
        self.say("")

    def _show_files(self, files: Sequence[FileRow]) -> None:
        """The smallest first; the best that fits is chosen."""
        best = next((each for each in files if each.room in (Room.FITS, Room.SMALLER)), None)
        self._files = sorted(files, key=lambda each: each.file.size)
        self.refresh_list()
        if best is not None:
            self._chooser.highlighted = self._files.index(best)

    # -- asked beside the screen --

    def _ask(self, question: Callable[[], Awaitable[None]]) -> None:
        async def work() -> None:
            try:
                await question()
            except EmberError as error:
                self.say(inert_line(str(error)), is_error=True)

        self.run_worker(work(), group=_GROUP, exclusive=True)

    async def _search_for(self, text: str) -> None:
        self.say("searching…")
        self._repos = await _answer(lambda report: search(text, report))
        none = f"the Hub has no GGUF repository whose name holds “{inert_line(text)}”"
        self.say("" if self._repos else none)
        self.refresh_list()

    async def _look_at(self, repo: HubModel) -> None:
        self.refresh_list()
        self.say("looking at its files…")
        files = await _answer(lambda report: listing(repo, report))
        self._show_files([FileRow(file=each) for each in files])
        if not files:
            self.say("it has no GGUF file of a model")
            return
        self.say("reading what the model is…")
        costs = await _answer(lambda report: costs_of(files, report))
        rows = zip(files, costs, strict=True)
        self._show_files([FileRow(file=file, cost=cost) for file, cost in rows])
        self.say("")


class _LeftError(Exception):
    """Ends a question whose answer nobody waits for."""


async def _answer(question: Callable[[ProgressCallback], T]) -> T:
    """What a question gives, asked on a thread; it ends where this is cancelled."""
    left = Event()

    def report(_progress: Progress) -> None:
        if left.is_set():
            raise _LeftError

    try:
        return await asyncio.to_thread(question, report)
    finally:
        left.set()


def cache_cost(cost: Cost | None) -> str:
    """What 1000 tokens of a model's cache take, and its windows."""
    if cost is None or not cost.least_bytes:
        return ""
    hot, cold = (units.size(1000 * each) for each in (cost.token_bytes, cost.cold_bytes))
    grows = f"KV per 1k tokens {hot}, cold {cold}" if cost.token_bytes else ""
    windows = f"KV windows {units.size(cost.window_bytes)}" if cost.window_bytes else ""
    return f"{', '.join(filter(None, (grows, windows)))} · "


def _repo_line(repo: FoundRepo) -> Content:
    """Name, size of the model, downloads; what it is."""
    parameters = f"{repo.parameters_text} · " if repo.parameters else ""
    first = (inert_line(repo.repo), "bold")
    downloads = f"\n{parameters}{repo.downloads:,} downloads a month"
    gated = " · gated: needs HF_TOKEN" if repo.gated else ""
    architecture = inert_line(repo.architecture)
    if not runs(repo.architecture):
        cannot = f" · cannot run: architecture {architecture}"
        return Content.assemble(first, (downloads, MUTED), (cannot, "$error"))
    about = f"{downloads} · {architecture}{gated}" if architecture else f"{downloads}{gated}"
    return Content.assemble(first, (about, MUTED))


def _file_line(row: FileRow) -> Content:
    """Quantization, size, fit; cache cost and name."""
    file, cost = row.file, row.cost
    name, size = inert_line(file.hub.file), units.file_size(file.size)
    first = ((file.quantization or "GGUF").ljust(9), "bold"), f" {size}  "
    if cost is None:
        return Content.assemble(*first, f"\n{name}")
    if cost.problem:
        cannot = f"cannot run: {inert_line(cost.problem)}"
        return Content.assemble(*first, (cannot, "$error"), (f"\n{name}", MUTED))
    seen = outlook(cost, memory.memory())
    fits = seen.in_words if cost.shape is not None else ""
    style = _STYLES.get(seen.room, MUTED)
    return Content.assemble(*first, (fits, style), (f"\n{cache_cost(cost)}{name}", MUTED))
