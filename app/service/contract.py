"""What the chat needs of a model: the seam between the screen and inference.

`live_service.LiveService` is the real one; tests and the UI benchmark script
their own. Nothing here waits: work is handed over as a `Job` whose items the
screen takes on a timer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from app.cache_flags import KEEP_SYSTEM, pair_of
from app.events import Completion, Event
from app.job import Job
from app.sampling import Sampling
from kvcache import CacheConfig
from kvcache.stats import CacheStats
from models.finding.progress import Progress
from models.sampling_defaults import Recommended, SamplingDefaults
from models.text.messages import Message
from models.text.thinking import DEFAULT_BUDGET


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A loaded model and the plan of its cache.

    spec: what names it on the command line. window: tokens of a prompt at most. holds:
    tokens that a layer holds at most, fewer than that where all see fewer. layer_bytes: of
    the largest layer's cache. block: tokens that are let go of together. thinks: whether it
    may think before it answers; has_switch: whether it can be told. sampling: as its makers
    would have it. notes: what the user should know about this load, a line each.
    """

    name: str
    spec: str
    path: Path
    file_bytes: int
    weight_bytes: int
    layers: int
    window: int
    holds: int
    max_bytes: int
    layer_bytes: int
    token_bytes: int
    block: int
    kv: str
    backend: str
    thinks: bool = False
    has_switch: bool = False
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    notes: tuple[str, ...] = ()

    def recommended(self, think: bool | None) -> Recommended:
        """How to draw its answers, where a user wants it to think or not."""
        return self.sampling.recommended(think, thinks=self.thinks, has_switch=self.has_switch)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A conversation to answer.

    continues: the last message is an answer that goes on. left_out: so many of the oldest turns
    are not read, where the model holds what follows. room: tokens of the window that are left
    for the answer where turns must be left out. cuts: of a question that alone is too long, the
    oldest tokens are cut. think: whether to think first,
    None as the model is used to; think_budget: the most tokens of it. lookup: draft tokens
    from the context. allow_loops: go on where the answer says the same again and again.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    continues: bool = False
    left_out: int = 0
    room: int = 512
    cuts: bool = False
    think: bool | None = None
    think_budget: int = DEFAULT_BUDGET
    lookup: bool = True
    allow_loops: bool = True


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The prompt is made, and the window holds it: the first event of an answer.

    ends, dropped, notes: as in `chat_tokens.Prompt`. woken: tokens of it that were kept on disk
    and taken back now.
    """

    prompt_tokens: int
    ends: tuple[int, ...]
    dropped: int = 0
    woken: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Weight:
    """What a prompt would be, of an `Ask` that is not answered yet.

    new: tokens of it that are to be computed. dropped: turns that are left out. fits: whether
    the window holds it.
    """

    tokens: int
    new: int
    window: int
    dropped: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """The window cannot hold the question alone: nothing was cut or answered. The only event."""

    prompt_tokens: int
    window: int


AnswerEvent = Prepared | TooLong | Event


@dataclass(frozen=True, kw_only=True)
class LetGo:
    """The model before has been let go, as memory cannot hold it and the next one."""


@dataclass(frozen=True, kw_only=True)
class CacheChanged:
    """The cache is another. said: what that did to the one of the loaded model, a line each."""

    said: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user should know of a download, in a line."""

    text: str


FetchEvent = Progress | Told
LoadEvent = Progress | LetGo | CacheChanged | ModelInfo


@dataclass(frozen=True, kw_only=True)
class CacheWish:
    """What a user may set of the cache, also while it holds a chat.

    kv: codecs, K[/V], or bits, which each layer's are chosen for. ctx: tokens of the window; 0: all
    that the model was trained for, or what fits. hot: newest tokens that stay unencoded. keep:
    first tokens that are never let go, a number, or `KEEP_SYSTEM`.
    """

    kv: str
    ctx: int
    hot: int
    keep: str

    def over(self, config: CacheConfig) -> CacheConfig:
        """A configuration with these in place of its own, but for bits, as `cache_flags.pair_of`.

        A window goes before a budget.
        """
        keys, values = pair_of(self.kv)
        return replace(
            config,
            keys=keys,
            values=values,
            max_tokens=self.ctx or None,
            budget=None if self.ctx else config.budget,
            hot=self.hot,
            keep=0 if self.keep == KEEP_SYSTEM else int(self.keep),
        )


class ModelService(Protocol):
    """Loads one model at a time and answers with it. One piece of work at a time."""

    def is_here(self, spec: str) -> bool:
        """Whether a model must not be fetched first; True for a name that cannot be."""
        ...

    def load(self, spec: str) -> Job[LoadEvent]:
        """Load a model that is on this machine; the last item is its `ModelInfo`.

        The present one answers until then, unless there was a `LetGo`.
        """
        ...

    def change_cache(self, wish: CacheWish) -> Job[LoadEvent]:
        """Another cache for this model and those to come; what it holds is taken along.

        Gives `CacheChanged`, and the model's `ModelInfo` where one is loaded. A job that fails, or
        is stopped before, has changed nothing.
        """
        ...

    def fetch(self, spec: str) -> Job[FetchEvent]:
        """Download a model, beside whatever else runs."""
        ...

    def answer(self, ask: Ask) -> Job[AnswerEvent]:
        """Answer a conversation."""
        ...

    def weigh(self, ask: Ask) -> Job[Weight]:
        """What the prompt of an answer would be; touches neither the cache nor the conversation."""
        ...

    def measure(self) -> Job[Completion]:
        """Read and answer a short text beside the conversation; its cache stays as it is."""
        ...

    def cancel(self) -> None:
        """Stop the load or answer that runs; it ends soon, with what it has."""
        ...

    def cancel_fetch(self) -> None:
        """Stop the download that runs."""
        ...

    def layer_stats(self) -> Sequence[CacheStats]:
        """The cache, layer by layer; empty without a model. Any thread may ask."""
        ...

    def close(self) -> None:
        """Stop everything and wait for it, unless it does not hear."""
        ...
