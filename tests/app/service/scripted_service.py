"""`ModelService` without a model: says what it is told to, when it is told.

For tests and for the benchmark of the screen. Figures of the cache follow from
what is said, or are set.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from app.events import Completion, Finished, FinishReason, PrefillProgress, TextChunk, ThinkingChunk
from app.job import Job
from app.service.contract import (
    AnswerEvent,
    Ask,
    CacheChanged,
    CacheWish,
    FetchEvent,
    LetGo,
    LoadEvent,
    ModelInfo,
    Prepared,
    Weight,
)
from kvcache.stats import CacheStats
from models.finding.progress import Progress
from models.sampling_defaults import Recommended, SamplingDefaults

TOKEN_BYTES = 1024
# Of a model whose makers want the likeliest token.
GREEDY = SamplingDefaults(
    usual=Recommended(temp=0.0, source="its makers"),
    plain=Recommended(temp=0.0, source="its makers"),
)


def scripted_model(spec: str = "scripted") -> ModelInfo:
    """A model of 7 layers and a window of 1000 tokens."""
    return ModelInfo(
        name=spec,
        spec=spec,
        path=Path(f"{spec}.gguf"),
        file_bytes=97_000_000,
        weight_bytes=101_000_000,
        layers=7,
        window=1000,
        holds=1000,
        max_bytes=1000 * TOKEN_BYTES * 7,
        layer_bytes=1000 * TOKEN_BYTES,
        token_bytes=TOKEN_BYTES * 7,
        block=64,
        kv="f16",
        backend="scripted",
        sampling=GREEDY,
    )


def scripted_completion(
    pieces: Sequence[str],
    *,
    thoughts: Sequence[str] = (),
    prompt_tokens: int,
    reused_tokens: int = 0,
    reason: FinishReason = FinishReason.STOP,
) -> Completion:
    """One token a piece, at speeds that never differ."""
    return Completion(
        text="".join(pieces),
        tokens=tuple(range(len(thoughts) + len(pieces))),
        prompt_tokens=prompt_tokens,
        reused_tokens=reused_tokens,
        finish_reason=reason,
        ttft_s=0.38,
        prefill_tps=1284.0,
        decode_tps=42.0,
        thinking="".join(thoughts),
        thinking_tokens=len(thoughts),
        thinking_s=len(thoughts) / 42.0,
    )


class ScriptedService:
    """Records what it is asked; the script's owner plays the model.

    holds_load: keep a load open until `finish_load`. missing: models to be fetched.
    notes: what a load has to say. thinks: whether the model does; has_switch: by a switch.
    """

    def __init__(
        self,
        *,
        holds_load: bool = False,
        missing: Sequence[str] = (),
        notes: Sequence[str] = (),
        thinks: bool = False,
        has_switch: bool = False,
    ) -> None:
        self._thinks, self._has_switch = thinks, has_switch
        self.asks: list[Ask] = []
        self.weighed: list[Ask] = []
        self.loads: list[str] = []
        self.wishes: list[CacheWish] = []
        self.fetches: list[str] = []
        self.stats: list[CacheStats] = []
        self.load_error: Exception | None = None
        self.missing = set(missing)
        self._notes = tuple(notes)
        self.fetch_job: Job[FetchEvent] | None = None
        self.look: Job[Completion] | None = None
        self._holds_load = holds_load
        self._load_job: Job[LoadEvent] | None = None
        self._job: Job[AnswerEvent] | None = None
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._prompt_tokens = 0
        self._reused = 0

    # -- the model's side --

    def finish_load(self) -> None:
        """The load that was asked for succeeds, or fails with `load_error`."""
        assert self._load_job is not None
        if self.load_error is None:
            thinks, has_switch = self._thinks, self._has_switch
            model = scripted_model(self.loads[-1])
            model = replace(model, notes=self._notes, thinks=thinks, has_switch=has_switch)
            self._load_job.put(model)
        self._load_job.finish(self.load_error)
        self._load_job = None

    def make_room(self) -> None:
        """The model before does not fit beside the one that loads."""
        assert self._load_job is not None
        self._load_job.put(LetGo())

    def read(self, done: int, total: int, *, reused: int = 0, seconds: float = 0.5) -> None:
        """Prefill has come this far."""
        self._prompt_tokens, self._reused = total, reused
        self.put(PrefillProgress(done=done, total=total, reused=reused, seconds=seconds))

    def think(self, *pieces: str) -> None:
        """Think one token a piece."""
        for piece in pieces:
            self._thoughts.append(piece)
            count, at = len(self._thoughts), time.perf_counter()
            chunk = ThinkingChunk(
                row=0, text=piece, tokens=count, thinking_tokens=count, seconds=count / 42.0, at=at
            )
            self.put(chunk)

    def say(self, *pieces: str) -> None:
        """Answer one token a piece."""
        for piece in pieces:
            self._text.append(piece)
            at = time.perf_counter()
            count = len(self._thoughts) + len(self._text)
            self.put(TextChunk(row=0, text=piece, tokens=count, at=at))

    def finish(self, reason: FinishReason = FinishReason.STOP) -> None:
        """The answer ends."""
        completion = scripted_completion(
            self._text,
            thoughts=self._thoughts,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            reason=reason,
        )
        self.put(Finished(row=0, completion=completion))
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """The answer breaks."""
        self._end(error)

    def put(self, event: AnswerEvent) -> None:
        """Any event of the running answer."""
        assert self._job is not None
        self._job.put(event)

    def end(self) -> None:
        """End the answer with nothing more said."""
        self._end(None)

    def finish_look(self) -> None:
        """The look at the speed ends."""
        assert self.look is not None
        self.look.put(scripted_completion("x" * 32, prompt_tokens=256))
        self.look.finish()
        self.look = None

    @property
    def answering(self) -> bool:
        """Whether an answer is open."""
        return self._job is not None

    def _end(self, error: BaseException | None) -> None:
        assert self._job is not None
        job, self._job = self._job, None
        job.finish(error)

    def fetched(self, done: int, total: int) -> None:
        """The download has come this far; the last part ends it."""
        assert self.fetch_job is not None
        self.fetch_job.put(Progress(done_bytes=done, total_bytes=total, label="fetching"))
        if done == total:
            self.missing.discard(self.fetches[-1])
            self.fetch_job.finish()

    # -- ModelService --

    def is_here(self, spec: str) -> bool:
        return spec not in self.missing

    def load(self, spec: str) -> Job[LoadEvent]:
        self.loads.append(spec)
        self._load_job = job = Job[LoadEvent]()
        job.put(Progress(done_bytes=1, total_bytes=4, label="loading"))
        if not self._holds_load:
            self.finish_load()
        return job

    def change_cache(self, wish: CacheWish) -> Job[LoadEvent]:
        self.wishes.append(wish)
        job = Job[LoadEvent]()
        if self.load_error is None:
            job.put(CacheChanged(said=(f"the cache is {wish.kv} now",)))
            job.put(replace(scripted_model(self.loads[-1]), kv=wish.kv, window=wish.ctx or 1000))
        job.finish(self.load_error)
        return job

    def fetch(self, spec: str) -> Job[FetchEvent]:
        self.fetches.append(spec)
        self.fetch_job = Job[FetchEvent]()
        return self.fetch_job

    def answer(self, ask: Ask) -> Job[AnswerEvent]:
        self.asks.append(ask)
        self._text, self._thoughts = [], []
        self._job = job = Job[AnswerEvent]()
        lengths = [len(message.content) for message in ask.messages]
        ends = tuple(sum(lengths[: at + 1]) for at in range(len(lengths)))
        self._prompt_tokens, self._reused = ends[-1], 0
        job.put(Prepared(prompt_tokens=ends[-1], ends=ends, dropped=ask.left_out))
        return job

    def weigh(self, ask: Ask) -> Job[Weight]:
        self.weighed.append(ask)
        job = Job[Weight]()
        tokens = sum(len(message.content) for message in ask.messages)
        job.put(Weight(tokens=tokens, new=tokens, window=1000, dropped=0, fits=tokens <= 1000))
        job.finish()
        return job

    def measure(self) -> Job[Completion]:
        self.look = Job[Completion]()
        return self.look

    def cancel(self) -> None:
        if self.look is not None:
            self.look.finish()
        if self._load_job is not None:
            job, self._load_job = self._load_job, None
            job.finish()
        if self._job is not None:
            self.finish(FinishReason.CANCELLED)

    def cancel_fetch(self) -> None:
        if self.fetch_job is not None:
            self.fetch_job.finish()

    def layer_stats(self) -> Sequence[CacheStats]:
        return self.stats

    def close(self) -> None:
        self.cancel_fetch()


def layer_stats(
    *, sink: int = 0, hot: int = 0, cold: int = 0, evicted: int = 0, layers: int = 7
) -> list[CacheStats]:
    """Figures of equal layers: f16 sinks and hot tokens, cold ones at 4.5 bits."""
    one = CacheStats(
        total=sink + hot + cold + evicted,
        sink=sink,
        hot=hot,
        cold=cold,
        evicted=evicted,
        sink_bytes=sink * TOKEN_BYTES,
        hot_bytes=hot * TOKEN_BYTES,
        cold_bytes=cold * TOKEN_BYTES * 9 // 32,
        allocated_bytes=(sink + hot + cold) * TOKEN_BYTES,
        fp16_bytes=(sink + hot + cold) * TOKEN_BYTES,
    )
    return [replace(one) for _ in range(layers)]
