"""Lets an engine's caches rest on disk between answers, and wakes them where they were.

A conversation is found by its ids, whatever chat it is in: the longest beginning of a prompt that
the folder has, in a rest or in blocks alone, is taken where the engine's own caches hold less of
it. What does not fit, or is not there whole, is computed as if there were nothing. Works on the
thread that owns the engine, a small step at a time; the disk is written to by another.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

import mlx.core as mx
import numpy as np

from app.engine import Engine
from app.wake.folder import Found, PieceFolder
from app.wake.piece import DamagedPieceError
from app.wake.pieces import Ids, Pieces, Rest, needs_of
from app.wake.said import dump, load, shared
from app.wake.writer import PieceWriter
from kvcache import CachePlan
from kvcache.errors import EmberError
from kvcache.prompt_cache import reach
from kvcache.tiers.ledger import Ledger
from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import Tokenizer

# Fewer tokens are computed as soon as they are read.
LEAST_TOKENS = 64
_TRIES = 4
_READ_BYTES = 32 << 20  # of blocks at a time
_REST = ".rest"


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How to hold the beginning of a prompt. reached: how many of its tokens, after rewinding.

    rest: None where blocks alone hold it.
    """

    reached: int
    ids: Ids
    ledgers: tuple[Ledger, ...]
    rest: Rest | None = None


class Waking:
    """folder: where pieces are kept."""

    def __init__(self, folder: PieceFolder) -> None:
        self._folder = folder
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._writer = PieceWriter(folder, self._notes.put)
        self._made: tuple[CachePlan, Pieces] | None = None
        self._rests: dict[str, Rest] = {}
        self._needs: dict[str, Sequence[str]] = {}  # the writer's thread's

    def wake(self, engine: Engine, prompt: Sequence[int]) -> int:
        """Have an engine hold as much of a prompt as was kept, if that is more than it holds.

        Returns how many tokens of it need not be computed; 0 where nothing was taken.
        """
        pieces = self._pieces(engine)
        if pieces is None:
            return 0
        least = engine.reusable(prompt) + LEAST_TOKENS
        # As where a chat goes on: nearly all is held, and nothing is looked for on the disk.
        if len(prompt) <= least:
            return 0
        ids = np.array(prompt, np.int32)
        for _ in range(_TRIES):
            way = self._best(pieces, engine, ids, least)
            if way is None:
                return 0
            try:
                self._take(pieces, engine, way)
            except EmberError:
                engine.holds([])
                continue
            return way.reached
        return 0

    def reach(self, engine: Engine, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that `wake` would have an engine hold; 0 where it would do nothing."""
        pieces, least = self._pieces(engine), engine.reusable(prompt) + LEAST_TOKENS
        if pieces is None or len(prompt) <= least:
            return 0
        way = self._best(pieces, engine, np.array(prompt, np.int32), least)
        return 0 if way is None else way.reached

    def recall(self, engine: Engine, text: str) -> TokenizedText | None:
        """Of the conversations that were kept, the one whose text begins most as this one does.

        With the ids that the engine held of it, by which it is found.
        """
        pieces = self._pieces(engine)
        if pieces is None:
            return None
        known = self._known(pieces, self._folder.pieces(), engine.loaded.tokenizer)
        said = [(shared(rest.said, text), rest) for rest in known if rest.said is not None]
        for length, rest in sorted(said, key=lambda each: -each[0]):
            if length < LEAST_TOKENS:
                return None
            with suppress(DamagedPieceError), self._removing([rest.name]):
                file = self._whole(rest.name)
                pieces.rest_in(rest.name, file)[0].read(file)
                return rest.said
        return None

    def rest(
        self, engine: Engine, said: TokenizedText | None = None
    ) -> Generator[None, None, None]:
        """Keep what an engine holds, a step at a time; what is kept already is not written again.

        The engine must stay as it is between steps. Ended early, what is kept is whole.
        said: the text of it, by which `recall` will know it.
        """
        pieces, ids = self._pieces(engine), np.array(engine.held(), np.int32)
        if pieces is None or len(ids) < LEAST_TOKENS:
            return
        ledgers = pieces.ledgers(engine.caches)
        if any(each.total != len(ids) or each.pinned < each.sizes.pinned for each in ledgers):
            return
        present, name = self._folder.pieces(), pieces.rest_name(ids)
        needed = pieces.needed(ids, ledgers[0])
        if name not in present:
            yield from self._write(pieces, engine, needed, present)
            text = dump(said, engine.held())
            layout, contents = pieces.rest(engine.caches, ids, name, text)
            yield from self._writer.write(name, layout, contents)
        known = self._known(pieces, present, engine.loaded.tokenizer)
        gone = [each.name for each in known if _goes_on(each, ids)]
        self._writer.call(lambda: self._settle([*needed, name], gone))

    def notes(self) -> Iterator[str]:
        """What the user should know since the last call, a line each."""
        while not self._notes.empty():
            yield self._notes.get()

    def close(self, patience: float) -> None:
        """Wait for the disk, no longer than so many seconds."""
        self._writer.close(patience)

    # -- keeping --

    def _write(
        self, pieces: Pieces, engine: Engine, needed: Sequence[str], present: Mapping[str, Found]
    ) -> Iterator[None]:
        """The pins and blocks that are not there."""
        ledger = pieces.ledgers(engine.caches)[0]
        first = ledger.end - len(needed)
        for number, name in enumerate(needed, start=first):
            if name in present:
                continue
            if number < ledger.first:
                layout, contents = pieces.pins(engine.caches, name)
            else:
                layout, contents = pieces.block(engine.caches, number, name)
            yield from self._writer.write(name, layout, contents)

    def _settle(self, used: Sequence[str], gone: Sequence[str]) -> None:
        """Note what is used, and keep to the bound; on the writer's thread."""
        for name in gone:
            self._folder.remove(name)
        self._folder.use(used)
        rests = [name for name in self._folder.pieces() if name.endswith(_REST)]
        for name in rests:
            if name not in self._needs:
                self._needs[name] = needs_of(self._folder.head(name))
        wanted = {need for name in rests for need in (name, *self._needs[name])}
        self._folder.bound(wanted)

    # -- waking --

    def _best(self, pieces: Pieces, engine: Engine, ids: Ids, least: int) -> _Way | None:
        """The way to the most tokens, of at least so many; of two, the one of blocks alone."""
        present, plan = self._folder.pieces(), engine.plan
        ways = [*self._by_blocks(pieces, plan, ids, present)]
        for rest in self._known(pieces, present, engine.loaded.tokenizer):
            if (shared := _shared(rest.ids, ids)) >= least:
                reached = reach(rest.ledgers, plan, tokens=shared, total=len(ids))
                ways.append(_Way(reached=reached, ids=rest.ids, ledgers=rest.ledgers, rest=rest))
        for way in sorted(ways, key=lambda way: -way.reached):
            if way.reached < least:
                return None
            if all(name in present for name in pieces.needed(way.ids, way.ledgers[0])):
                return way
        return None

    def _by_blocks(
        self, pieces: Pieces, plan: CachePlan, ids: Ids, present: Mapping[str, Found]
    ) -> Iterator[_Way]:
        """The longest beginning of which all blocks are there that a cache would hold."""
        whole = pieces.whole
        if whole is None or pieces.has_windows or not whole.sizes.slots:
            return
        sizes, run, ends = whole.sizes, 0, list[int]()
        # The last token is always computed.
        for number, name in enumerate(pieces.block_names(ids[:-1]), start=1):
            run = run + 1 if name in present else 0
            if run >= min(number, sizes.slots):
                ends.append(number)
        for end in reversed(ends):
            total, first = sizes.pinned + end * sizes.block, max(0, end - sizes.slots)
            ledger = Ledger(sizes=sizes, total=total, first=first, end=end)
            # Else it lacks what a cache that reads the prompt anew would hold.
            if reach([ledger], plan, tokens=total, total=len(ids)) == total:
                yield _Way(reached=total, ids=ids[:total], ledgers=(ledger,))
                return

    def _take(self, pieces: Pieces, engine: Engine, way: _Way) -> None:
        """Fill the engine's caches. Raises EmberError where a piece is not what it must be."""
        needed = pieces.needed(way.ids, way.ledgers[0])
        ledger, caches = way.ledgers[0], engine.caches
        blocks = needed[len(needed) - (ledger.end - ledger.first) :] if pieces.whole else []
        pins = needed[: len(needed) - len(blocks)]
        rest = None
        with self._removing([*pins, *([way.rest.name] if way.rest else [])]):
            if way.rest is not None:
                file = self._whole(way.rest.name)
                rest = pieces.rest_in(way.rest.name, file)[0], file
            pinned = (pins[0], self._whole(pins[0])) if pins else None
            pieces.hold(caches, way.ledgers, pinned, rest)
        del rest
        each = max(1, _READ_BYTES // max(1, engine.plan.block_bytes))
        for at in range(0, len(blocks), each):
            some = blocks[at : at + each]
            with self._removing(some):
                pieces.put(caches, ledger.first + at, [(name, self._whole(name)) for name in some])
        mx.eval([cache.pending() for cache in caches])
        engine.holds(way.ids.tolist())
        used = [*needed, way.rest.name] if way.rest else needed
        self._writer.call(lambda: self._folder.use(used))

    def _whole(self, name: str) -> bytes:
        """A piece's file. Raises DamagedPieceError where it has gone."""
        file = self._folder.read(name)
        if file is None:
            raise DamagedPieceError("has gone")
        return file

    @contextmanager
    def _removing(self, names: Sequence[str]) -> Iterator[None]:
        """Pieces that turn out to be of no use go."""
        try:
            yield
        except EmberError:
            for name in names:
                self._folder.remove(name)
            raise

    # -- what is known --

    def _pieces(self, engine: Engine) -> Pieces | None:
        """Of the engine's plan; None where its model's file is not what it was."""
        if self._made is None or self._made[0] is not engine.plan:
            try:
                model = engine.loaded.identity
            except EmberError:
                return None
            self._made = engine.plan, Pieces(engine.caches, engine.plan, model, engine.metric)
            self._rests.clear()
        return self._made[1]

    def _known(
        self, pieces: Pieces, present: Mapping[str, Found], tokenizer: Tokenizer
    ) -> list[Rest]:
        """The rests under a plan; what is none is removed."""
        for name in self._rests.keys() - present.keys():
            del self._rests[name]
        for name, found in present.items():
            if name not in self._rests and pieces.is_rest(name):
                try:
                    self._rests[name] = self._rest(pieces, found, tokenizer)
                except DamagedPieceError:
                    self._folder.remove(name)
        return list(self._rests.values())

    def _rest(self, pieces: Pieces, found: Found, tokenizer: Tokenizer) -> Rest:
        """Raises DamagedPieceError."""
        name = found.name
        layout, ledgers = pieces.rest_in(name, self._folder.head(name))
        if found.nbytes != layout.nbytes:
            raise DamagedPieceError("is not what its name says")
        count, said = (part.nbytes for part in layout.parts[:2])
        data = self._folder.read(name, count + said, at=len(layout.header)) or b""
        ids = pieces.ids_in(name, data[:count])
        text = load(data[count:], ids.tolist(), tokenizer) if said else None
        return Rest(name=name, ids=ids, ledgers=ledgers, said=text)


def _shared(ids: Ids, prompt: Ids) -> int:
    """Tokens that two begin with, but for the prompt's last, which is always computed."""
    length = min(len(ids), len(prompt) - 1)
    differ = np.flatnonzero(ids[:length] != prompt[:length])
    return int(differ[0]) if differ.size else length


def _goes_on(rest: Rest, ids: Ids) -> bool:
    """Whether these ids say all that a rest said, and more."""
    return len(rest.ids) < len(ids) and bool((ids[: len(rest.ids)] == rest.ids).all())
