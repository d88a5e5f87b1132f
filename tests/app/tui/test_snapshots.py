"""What the main states look like; `pytest --snapshot-update` accepts a change."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from app import memory
from app.chat.state import Draft
from app.events import Completion, FinishReason
from app.model_list import Cost, cost_by_shape
from app.sessions.chat import Attachment, Chat, ChatMessage, Figures, State, Thought
from app.tui.app import ChatApp
from app.tui.screens import hub
from app.tui.screens.chat import ChatScreen
from kvcache import EmberError, ModelShape
from models.finding.choice import ListedFile
from models.finding.hub import HubFile
from models.finding.hub_listing import FoundRepo
from models.text.messages import Role
from tests.app.service.scripted_service import ScriptedService, layer_stats

SIZES = [(120, 36), (80, 24), (60, 20)]
FIGURES = Figures(
    model="scripted",
    tokens=412,
    prompt_tokens=1900,
    reused_tokens=1800,
    finish_reason="stop",
    ttft_s=0.38,
    prefill_tps=1284.0,
    decode_tps=42.3,
)
ANSWER = """\
Attention reads **every cached key** for each new token, so cost grows with the context:

1. compress the cold tier
2. keep `sinks` and the *hot* window

```python
for block in cache.cold:
    print(block.nbytes)
```

| tier | bits |
|---|---|
| hot | 16 |
| cold | 4.5 |

> Eviction drops the oldest block. [bold]Not markup[/bold]\x1b[31m, and no colour.
"""


class Compare(Protocol):
    """What `snap_compare` is."""

    def __call__(
        self,
        app: App[None],
        press: tuple[str, ...] = (),
        terminal_size: tuple[int, int] = (80, 24),
        run_before: Callable[[Pilot[None]], Awaitable[None] | None] | None = None,
    ) -> bool: ...


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of this machine and moment that would differ from run to run."""
    monkeypatch.setattr(memory, "resident", lambda: 2 << 30)
    monkeypatch.setattr(memory, "installed", lambda: 16 << 30)
    here = memory.Memory(most=16 << 30, now=12 << 30)
    monkeypatch.setattr(memory, "memory", lambda: here)
    monkeypatch.setattr(time, "localtime", lambda _at=None: time.gmtime(0))


def conversation() -> Chat:
    """A question with a file, an answer with everything in it, and another question."""
    question = ChatMessage(
        role=Role.USER,
        text="Why does decoding slow as the chat grows?",
        attachments=(Attachment(name="notes.md", text="one\ntwo"),),
        end=300,
    )
    answer = ChatMessage(role=Role.ASSISTANT, text=ANSWER, figures=FIGURES, end=800)
    stopped = ChatMessage(role=Role.ASSISTANT, text="It", state=State.STOPPED, end=830)
    again = ChatMessage(role=Role.USER, text="And eviction?", end=820)
    return Chat(title="KV cache", messages=[question, answer, again, stopped])


def prepared(service: ScriptedService, chat: Chat | None) -> ChatApp:
    app = ChatApp(service, model="scripted", chat=chat)
    meter = app.chat.meter
    meter.begin(0.0)
    for step in range(1, 200):
        meter.add(step * 0.1, 4 + step % 3)
    if chat is not None:
        app.chat.last = Completion(
            text="",
            tokens=tuple(range(412)),
            prompt_tokens=1900,
            reused_tokens=1800,
            finish_reason=FinishReason.STOP,
            ttft_s=0.38,
            prefill_tps=1284.0,
            decode_tps=42.3,
        )
    return app


async def settle(pilot: Pilot[None]) -> None:
    """A still cursor, loaded model, drawn figures."""
    assert isinstance(pilot.app, ChatApp)
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    screen.composer.prompt.cursor_blink = False
    await pilot.pause(0.35)


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation_with_its_panes(snap_compare: Compare, size: tuple[int, int]) -> None:
    service = ScriptedService()
    service.stats = layer_stats(sink=4, hot=256, cold=512, evicted=64)
    assert snap_compare(prepared(service, conversation()), terminal_size=size, run_before=settle)


@pytest.mark.parametrize("key", ["", "ctrl+t"], ids=["folded", "open"])
def test_thinking(snap_compare: Compare, key: str) -> None:
    thought = Thought(
        text="A *question* of caches.\n\nSo:\n- every key is read", tokens=312, seconds=7.4
    )
    question = ChatMessage(role=Role.USER, text="Why does decoding slow?", end=30)
    answer = ChatMessage(
        role=Role.ASSISTANT,
        text="It reads **every key**.",
        thought=thought,
        figures=FIGURES,
        end=830,
    )
    app = prepared(ScriptedService(), Chat(title="KV cache", messages=[question, answer]))
    press = (key,) if key else ()
    assert snap_compare(app, press=press, terminal_size=(80, 24), run_before=settle)


@pytest.mark.parametrize("size", SIZES)
def test_the_welcome(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = prepared(ScriptedService(), None)
    assert snap_compare(app, terminal_size=size, run_before=settle)


@pytest.mark.parametrize("size", SIZES)
def test_a_repository_on_the_hub(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    files = [
        ListedFile(hub=HubFile(repo="o/Nice-3B-GGUF", file=f"Nice-3B-{name}.gguf"), size=count)
        for name, count in (("Q4_K_M", 2_019_377_696), ("Q8_0", 3_421_899_296), ("f16", 9 << 30))
    ]
    shape = ModelShape(layers=28, kv_heads=8, head_dim=128, context=131072)
    costs = [cost_by_shape(each.quantization, each.size, shape) for each in files]
    costs[-1] = Cost(problem="architecture 'made-up'")
    found = FoundRepo(repo="o/Nice-3B-GGUF", downloads=1234, parameters=3_000_000_000)
    monkeypatch.setattr(hub, "search", lambda _text, _report: [found])
    monkeypatch.setattr(hub, "listing", lambda _repo, _report: files)
    monkeypatch.setattr(hub, "costs_of", lambda _files, _report: costs)
    monkeypatch.setattr(hub, "_PAUSE", 0.01)

    async def before(pilot: Pilot[None]) -> None:
        await settle(pilot)
        await pilot.press("ctrl+l", "slash", *"nice")
        screen = pilot.app.screen
        assert isinstance(screen, hub.HubScreen)
        screen.query_one(Input).cursor_blink = False
        while not screen.query_one(OptionList).option_count:
            await pilot.pause(0.05)
        await pilot.press("enter")
        while screen.query_one(OptionList).option_count < len(files):
            await pilot.pause(0.05)
        await pilot.pause(0.35)

    assert snap_compare(prepared(ScriptedService(), None), terminal_size=size, run_before=before)


@pytest.mark.parametrize("size", SIZES)
def test_an_error_while_completing_a_command(snap_compare: Compare, size: tuple[int, int]) -> None:
    service = ScriptedService()
    app = prepared(service, None)

    async def before(pilot: Pilot[None]) -> None:
        await settle(pilot)
        app.chat.ask(Draft(text="hi"))
        service.fail(EmberError("the [disk] is full: free some space, then /retry"))
        await pilot.press("/", "s")
        await pilot.pause(0.35)

    assert snap_compare(app, terminal_size=size, run_before=before)
