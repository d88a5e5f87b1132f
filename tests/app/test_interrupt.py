import os
import signal
import subprocess
import sys

import pytest

from app.interrupt import cancel_on_interrupt


@pytest.mark.parametrize(
    ("number", "ends_with"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_the_first_signal_sets_the_flag_and_the_next_does_what_it_did(
    number: signal.Signals, ends_with: type[BaseException]
) -> None:
    heard = []
    before = signal.signal(number, lambda *_: heard.append("as before"))
    try:
        with cancel_on_interrupt() as cancel:
            cancel.check()
            os.kill(os.getpid(), number)
            assert cancel.is_set()
            assert cancel.exit_code == 128 + number
            with pytest.raises(ends_with):
                cancel.check()
            assert heard == []
            os.kill(os.getpid(), number)
            assert heard == ["as before"]
        os.kill(os.getpid(), number)
        assert heard == ["as before"] * 2
    finally:
        signal.signal(number, before)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cancel_on_interrupt() as cancel:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not cancel.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_alone_does_not_end_a_chat() -> None:
    with cancel_on_interrupt() as cancel:
        os.kill(os.getpid(), signal.SIGINT)
        cancel.check_killed()
    with cancel_on_interrupt() as cancel:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            cancel.check_killed()


@pytest.mark.parametrize("is_stuck", [False, True])
def test_the_end_says_all_and_waits_for_nobody(is_stuck: bool) -> None:
    script = f"""
import threading, time
from app.interrupt import end
if {is_stuck}:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("said", end="")
end(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"said", b"")


def test_a_time_limit_ends_whatever_runs() -> None:
    script = (
        "import time; from app.interrupt import end_within; end_within(0.1, 9); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_a_finalizer_is_heard_after_it(number: signal.Signals) -> None:
    program = f"""
import os, signal, time
from app.interrupt import exit_on_kill, hear_again
signal.signal(signal.SIGINT, signal.default_int_handler)
exit_on_kill()
hear_again()
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), {number:d})
        time.sleep(0)
try:
    Dropped()
    time.sleep(20)
    print("lost")
except (KeyboardInterrupt, SystemExit):
    print("heard")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_other_errors_of_finalizers_are_told_as_before() -> None:
    program = """
from app.interrupt import hear_again
hear_again()
class Fails:
    def __del__(self):
        raise ValueError("amid a finalizer")
Fails()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "ValueError: amid a finalizer" in done.stderr


def test_an_event_loop_that_a_signal_broke_off_says_nothing() -> None:
    program = """
import asyncio, signal, socket
from app.interrupt import hear_again
hear_again()
def interrupted():
    raise KeyboardInterrupt
socket.socketpair = interrupted
try:
    asyncio.SelectorEventLoop()
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")
