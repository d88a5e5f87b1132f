"""`bench speed`: how fast prompts are read and tokens come, at several depths.

Cases of one depth run in turns, repetition by repetition, so that a machine
whose speed drifts treats all engines alike; medians are quoted. Before, a short trial
decides which settings a peer is measured with, test by test (`tuning`). A peer whose
figure falls short of its own trial is measured again, and if that does not help, a
finding gives both.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.bench.engines.case import NO_CACHE, Case, EngineName, Measurement, Setting
from app.bench.engines.process import measure
from app.bench.engines.tuning import Tried, forms, ranked, settings_of, try_each
from app.bench.environment import said, version_of
from app.bench.figures.shapes import token_bytes
from app.bench.machine import figures, machine
from app.bench.meter import Meter
from app.bench.sections.speed_rows import (
    PACKAGES,
    SHORT_LENGTHS,
    Reading,
    RowsOf,
    SpeedRow,
    rows_of,
    short_rows_of,
)
from app.bench.settings import SpeedSettings
from app.console import note
from kvcache.config import on_gpu
from kvcache.errors import EmberError

SHORT_PROMPT = 16
# mlx-lm on a CPU takes a minute for what the others do in one or two seconds: beside
# it they do a smaller test too.
SMALL_PP, SMALL_TG = 128, 16
# A case that takes longer than this in all its repetitions gets fewer of them, but two.
_CASE_SECONDS = 45.0
_FEWEST = 2
# How often a peer that falls short of its trial is measured again.
_AGAIN = 3
_LLAMA_CPP_KV = ("f16", "q8_0/f16", "q8_0", "q4_0")
# Tokens that a trial generates; of mlx-lm on a CPU, a shorter prompt too.
_TRIAL_TG = 16
_TRIAL_SLOW_PP, _TRIAL_SLOW_TG = 64, 4
# On a CPU llama.cpp reads prompts over an encoded cache ever more slowly: 8000 tokens take minutes.
_DEEPEST_SLOW = 4096
_MLX_LM_KV = ("KVCache", "QuantizedKVCache 8", "QuantizedKVCache 4", "RotatingKVCache")
# Expected: seconds to start, prompt tokens a second, seconds a token.
_PACE = {
    EngineName.EMBER: (2.0, 500.0, 0.015),
    EngineName.LLAMA_CPP: (2.0, 220.0, 0.017),
    EngineName.MLX_LM: (3.0, 11.0, 0.12),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that take turns, and how their measurements become rows, one for each test.

    whole: a trial cannot be shorter than the case.
    """

    cases: tuple[Case, ...]
    rows: RowsOf
    whole: bool = False

    def trial(self, case: Case) -> Case:
        """The case that decides how a peer is set."""
        if self.whole:
            return case
        if case.engine is EngineName.MLX_LM and not on_gpu():
            return replace(case, pp=min(case.pp, _TRIAL_SLOW_PP), tg=min(case.tg, _TRIAL_SLOW_TG))
        return replace(case, tg=min(case.tg, _TRIAL_TG))

    def speeds(self, case: Case, one: Measurement) -> list[float]:
        """Tokens per second of each test."""
        return [row.tps for row in self.rows(case, [one])]


@dataclass(kw_only=True)
class Entry:
    """A case of a group, the settings of its tests, and its measurements by setting.

    tried: empty for ember, whose only setting is None.
    """

    case: Case
    tried: Tried = ()
    found: dict[Setting | None, list[Measurement]] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """One for each setting that is the best in a test."""
        best = dict.fromkeys(next(iter(each)) for each in self.tried) or [None]
        return [replace(self.case, setting=setting) for setting in best]

    def short(self, rows_of: RowsOf) -> list[Case]:
        """Those to be measured again: a row of theirs falls short of its trial."""
        fell = {row.setting for row in self.rows(rows_of) if row.falls_short}
        return [case for case in self.cases() if str(case.setting) in fell]

    def rows(self, rows_of: RowsOf) -> Iterator[SpeedRow]:
        """A row for each test that has been measured."""
        if not self.tried:
            yield from rows_of(self.case, self.found[None]) if self.found else ()
        for at, speeds in enumerate(self.tried):
            setting = next(iter(speeds))
            if measurements := self.found.get(setting):
                row = rows_of(self.case, measurements)[at]
                tried = {str(each): speed for each, speed in speeds.items()}
                yield replace(row, setting=str(setting), tried=tried)


def groups(settings: SpeedSettings) -> list[Group]:
    """All cases, those of one depth and batch together."""
    found = [
        Group(cases=tuple(cases(settings, depth, batch)), rows=rows_of)
        for batch in settings.batch
        for depth in (settings.depths if batch == 1 else settings.depths[:1])
    ]
    if settings.peers and not on_gpu():
        found.append(Group(cases=tuple(small_cases(settings)), rows=rows_of))
    if settings.short:
        short = tuple(short_cases(settings))
        found.append(Group(cases=short, rows=short_rows_of, whole=True))
    return found


def cases(settings: SpeedSettings, depth: int, batch: int = 1) -> list[Case]:
    """The cases of one depth, ember's first; peers compute one row at a time."""
    kinds = [(EngineName.EMBER, kv) for kv in settings.kv]
    if settings.peers and batch == 1:
        slow = not on_gpu() and depth > _DEEPEST_SLOW
        kinds += [(EngineName.LLAMA_CPP, kv) for kv in _LLAMA_CPP_KV[: 1 if slow else None]]
        if on_gpu():
            kinds += [(EngineName.MLX_LM, kv) for kv in _MLX_LM_KV]
    return [
        _case(settings, *kind, depth=depth, pp=settings.pp, tg=settings.tg, batch=batch)
        for kind in kinds
    ]


def small_cases(settings: SpeedSettings) -> list[Case]:
    """mlx-lm's caches where it is slow, and the others' f16 and default beside them."""
    kinds = [(EngineName.EMBER, settings.kv[0]), (EngineName.EMBER, "f16")]
    kinds += [(EngineName.LLAMA_CPP, "f16")]
    kinds += [(EngineName.MLX_LM, kv) for kv in _MLX_LM_KV]
    return [
        _case(settings, *kind, depth=0, pp=SMALL_PP, tg=SMALL_TG, batch=1)
        for kind in dict.fromkeys(kinds)
    ]


def short_cases(settings: SpeedSettings) -> list[Case]:
    """What others publish: a short prompt and up to 100 tokens, with and without a cache."""
    kinds = [(EngineName.EMBER, kv) for kv in (NO_CACHE, "f16", settings.kv[0])]
    if settings.peers:
        kinds += [(EngineName.LLAMA_CPP, "f16"), (EngineName.MLX_LM, "KVCache")]
    longest = SHORT_LENGTHS[-1]
    return [
        _case(settings, *kind, depth=0, pp=SHORT_PROMPT, tg=longest, batch=1)
        for kind in dict.fromkeys(kinds)
    ]


def expected_seconds(settings: SpeedSettings) -> float:
    """Of the whole section."""
    return sum(
        _case_seconds(case) * _reps(settings, case)
        + sum(_trial_seconds(group.trial(case), alike) for alike in forms(_settings_of(case)))
        for group in groups(settings)
        for case in group.cases
    )


def run(settings: SpeedSettings, meter: Meter) -> Iterator[SpeedRow]:
    """Rows of each group as it ends; an interrupt leaves those of finished repetitions.

    A peer that cannot run is left out, with a line on stderr; raises EmberError
    where ember itself cannot.
    """
    memory = reading(settings)
    for group in groups(settings):
        entries: list[Entry] = []
        try:
            entries.extend(_tuned(group, meter))
            _measure_in_turns(settings, entries, meter)
            _measure_again(group, entries, meter)
        except KeyboardInterrupt:
            yield from _rows(group, entries, memory)
            raise
        yield from _rows(group, entries, memory)


def reading(settings: SpeedSettings) -> Reading:
    """What a token's time is held against."""
    return Reading(weight_bytes=token_bytes(settings.model), bytes_s=machine().read_bytes_s)


def _rows(group: Group, entries: Sequence[Entry], memory: Reading) -> Iterator[SpeedRow]:
    for entry in entries:
        yield from map(memory.shown, entry.rows(group.rows))


def _tuned(group: Group, meter: Meter) -> Iterator[Entry]:
    """The group's cases, each peer with what a trial says of its settings."""
    for case in group.cases:
        if case.engine is EngineName.EMBER:
            yield Entry(case=case)
            continue
        trial = group.trial(case)
        found: dict[Setting, Measurement] = {}
        reason = "no setting runs"
        for alike in forms(_settings_of(case)):
            with meter.step(f"{_label(case)}, trials", _trial_seconds(trial, alike)):
                try:
                    found |= try_each(trial, alike)
                except EmberError as error:  # the other form may run
                    reason = str(error)
        if found:
            yield Entry(case=case, tried=ranked(trial, found, group.speeds))
        else:
            _leave_out(case, reason)


def _measure_in_turns(settings: SpeedSettings, entries: list[Entry], meter: Meter) -> None:
    for rep in range(settings.reps):
        for entry in list(entries):
            for case in entry.cases() if rep < _reps(settings, entry.case) else ():
                try:
                    _measure_once(entry, case, f"run {rep + 1}", meter)
                except EmberError as error:
                    if case.engine is EngineName.EMBER:
                        raise
                    _leave_out(case, str(error))
                    entries.remove(entry)
                    break


def _measure_again(group: Group, entries: list[Entry], meter: Meter) -> None:
    """What falls short of its trial, all of them in turns."""
    for turn in range(_AGAIN):
        for entry in entries:
            for case in entry.short(group.rows):
                try:
                    _measure_once(entry, case, f"below its trial, again {turn + 1}", meter)
                except EmberError as error:  # what it gave before stays
                    _leave_out(case, f"run again: {error}")


def _measure_once(entry: Entry, case: Case, what: str, meter: Meter) -> None:
    with meter.step(f"{_label(case)}, {what}", _case_seconds(case)):
        entry.found.setdefault(case.setting, []).append(measure(case))


def _label(case: Case) -> str:
    batch = f", batch {case.batch}" if case.batch > 1 else ""
    return f"speed: {case.engine.value} {case.kv} at depth {case.depth}{batch}"


def _leave_out(case: Case, reason: str) -> None:
    note(f"{case.engine.value} {case.kv} left out: {reason}")


def _settings_of(case: Case) -> list[Setting]:
    """What a peer is tried with; nothing for ember."""
    if case.engine is EngineName.EMBER:
        return []
    return settings_of(case, on_cpu=not on_gpu())


def _case(
    settings: SpeedSettings,
    engine: EngineName,
    kv: str,
    *,
    depth: int,
    pp: int,
    tg: int,
    batch: int,
) -> Case:
    return Case(
        engine=engine,
        model=settings.model,
        kv=kv,
        backend=settings.backend if engine is EngineName.EMBER else "auto",
        threads=settings.threads,
        depth=depth,
        pp=pp,
        tg=tg,
        batch=batch,
    )


def surroundings(settings: SpeedSettings) -> dict[str, Any]:
    """The memory's bandwidth; and how the peer that is compiled was, in its own words."""
    if not settings.peers or not version_of(PACKAGES[EngineName.LLAMA_CPP][0]):
        return figures()
    asked = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    return figures() | {"llama.cpp": said(sys.executable, "-c", asked)}


def _reps(settings: SpeedSettings, case: Case) -> int:
    """As many as asked for, fewer of a long case, but two; mlx-lm, slow and steady, once."""
    if case.engine is EngineName.MLX_LM and not on_gpu():
        return 1
    return min(settings.reps, max(_FEWEST, int(_CASE_SECONDS / _case_seconds(case))))


def _case_seconds(case: Case) -> float:
    """Expected, of one run."""
    start, reading, writing = _PACE[case.engine]
    read = case.depth + case.pp
    anew = case.tg * (case.pp + case.tg / 2) if case.kv == NO_CACHE else 0
    return start + case.batch * (read + anew) / reading + case.tg * writing


def _trial_seconds(case: Case, settings: Sequence[Setting]) -> float:
    """Expected, of trials in one process."""
    start, reading, writing = _PACE[case.engine]
    each = case.pp / reading + case.tg * writing + start / 2
    return start + case.depth / reading + len(settings) * each
