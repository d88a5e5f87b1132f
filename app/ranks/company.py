"""The processes of one model: what the leader asks of the others, and whether all are there.

What is computed goes through MLX's group. What is to be done goes by a connection of each
process to rank 0, which costs nothing while it waits, and which ends with its process, whatever
ended that: then all others end, as none can compute without it. A machine that is lost without
a word is missed by the system's own probes, after some ten seconds.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener, wait
from queue import SimpleQueue
from typing import NoReturn, TypeVar

import mlx.core as mx
import numpy as np

from app.interrupt import end
from app.ranks.launch import Launch
from app.ranks.meeting import first_word, least
from app.streams import keep_stderr
from kvcache.errors import EmberError, reason

T = TypeVar("T")
_KEY_BYTES = 16
# Of a connection that says nothing: seconds until the first probe, between probes, and how many.
_PROBES = {"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
# Seconds in which the watch ends a process that MLX tells of a rank that has ended.
_PATIENCE = 20.0
_VERBOSE = "MLX_RING_VERBOSE"


class OtherRankError(EmberError):
    """What this rank could do, and another one not."""


class Company:
    """The processes that `mlx.launch` started, all of which are here once this is made.

    Raises EmberError where they cannot meet.
    """

    def __init__(self, launch: Launch) -> None:
        try:
            self.group = mx.distributed.init(strict=True)
        except RuntimeError as error:
            raise EmberError(f"cannot meet the other ranks: {error}") from error
        if os.environ.get(_VERBOSE) != "1":
            # MLX's ring tells ten times of a rank that has ended, of which we tell once.
            keep_stderr()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.leads = launch.leads
        self._asked: SimpleQueue[object] = SimpleQueue()
        self._others: dict[Connection, int] = {}
        try:
            self._meet(launch.host)
        except (OSError, EOFError) as error:
            told = reason(error) if isinstance(error, OSError) else "it has ended"
            raise EmberError(f"cannot meet rank 0 at {launch.host}: {told}") from error
        watch = self._watch_others if self.leads else self._listen
        threading.Thread(target=watch, name="ranks", daemon=True).start()

    def tell(self, call: object) -> None:
        """Have all others do what is asked; of those that follow nobody has any."""
        for other in self._others:
            try:
                other.send(call)
            except OSError:  # The watch ends this process.
                threading.Event().wait()

    def together(self, call: object, work: Callable[[], T]) -> T:
        """Have all do what is asked, which `work` does here; where one cannot, none has done it.

        Raises what `work` raises, or OtherRankError: what rank 0 raises it says alone.
        """
        self.tell(call)
        with self.meeting():
            try:
                done = work()
            except BaseException as error:
                by_leader = self._least_done(done=False)[1]
                if not self.leads and not by_leader:
                    raise OtherRankError("rank 0 could not do it either") from error
                raise
            if not self._least_done(done=True)[0]:
                raise OtherRankError("another rank could not do it: its own line says why")
        return done

    def _least_done(self, *, done: bool) -> list[int]:
        """Whether all have done it, and whether rank 0 has."""
        return least([done, done or not self.leads], self.group)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Within this, all ranks compute; MLX may hear before the watch does that one has ended."""
        try:
            yield
        except RuntimeError as error:
            threading.Event().wait(_PATIENCE)
            raise EmberError(f"the ranks have lost each other: {error}") from error

    def asked(self) -> Iterator[object]:
        """What the leader asks, as it comes, without end: with the leader the process ends."""
        while True:
            yield self._asked.get()

    def leave(self) -> None:
        """The leader has nothing more to ask: the others end, without a word."""
        others, self._others = self._others, {}
        for other in others:
            try:
                other.send(None)
            except OSError:
                continue

    def _meet(self, host: str) -> None:
        if not self.leads:
            port, *told = self._first_word([0] * (1 + _KEY_BYTES))
            self._leader = _probed(Client((host, port), authkey=bytes(told)))
            self._leader.send(self.rank)
            return
        key = os.urandom(_KEY_BYTES)
        with Listener((host, 0), backlog=self.size, authkey=key) as listener:
            self._first_word([listener.address[1], *key])
            for _ in range(self.size - 1):
                other = _probed(listener.accept())
                self._others[other] = other.recv()

    def _first_word(self, numbers: list[int]) -> list[int]:
        found: list[int] = np.asarray(first_word(mx.array(numbers), self.group)).tolist()
        return found

    def _watch_others(self) -> None:
        """Others say nothing; one whose connection ends has ended."""
        watched = dict(self._others)
        ended = wait(list(watched))[0]
        assert isinstance(ended, Connection)
        if not self._others:
            return
        self.leave()
        self._end_without(watched[ended])

    def _listen(self) -> None:
        while True:
            try:
                call = self._leader.recv()
            except (OSError, EOFError):
                self._end_without(0)
            if call is None:
                end(0)
            self._asked.put(call)

    def _end_without(self, rank: int) -> NoReturn:
        own = "" if self.leads else f"rank {self.rank}: "
        said = f"ember: {own}error: rank {rank} of {self.size} has ended, and the model with it"
        print(said, file=sys.stderr)
        end(1)


def _probed(connection: Connection) -> Connection:
    """Have the system look whether the other side is still there."""
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in _PROBES.keys() & vars(socket).keys():  # systems call them differently
            shared.setsockopt(socket.IPPROTO_TCP, vars(socket)[name], _PROBES[name])
    return connection
