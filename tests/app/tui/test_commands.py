"""Every command and key, played by a scripted model."""

import json
from pathlib import Path

import pytest
from textual.widgets import Input, Static

from app.chat import settings as settings_file
from app.chat.command import find
from app.chat.settings import Settings
from app.events import FinishReason
from app.sampling import Sampling
from app.tui.commands import COMMANDS
from app.tui.screens.figures import CacheScreen, SpeedScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.palette import PaletteScreen
from app.tui.screens.settings import SettingsScreen
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.suggestions import Suggestions
from kvcache import EmberError
from tests.app.tui.conftest import Talk, on_screen, talk
from tests.full_disk import full_disk


async def two_turns(chat: Talk) -> None:
    await chat.exchange("one", "first answer")
    await chat.exchange("two", "second answer")


def test_commands_are_found_by_their_only_beginning() -> None:
    assert find(COMMANDS, "ret").name == "retry"
    assert find(COMMANDS, "set").name == "set"
    with pytest.raises(EmberError, match="/continue, /copy"):
        find(COMMANDS, "co")
    with pytest.raises(EmberError, match="/help lists them"):
        find(COMMANDS, "nonsense")


@on_screen
async def test_retry_continue_undo() -> None:
    async with talk() as chat:
        await two_turns(chat)
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.service.answering)
        chat.service.say("better")
        chat.service.finish()
        await chat.settled()
        assert chat.texts[-1] == "better"
        await chat.type("/continue")
        await chat.until(lambda: chat.service.answering)
        chat.service.say(" still")
        chat.service.finish()
        await chat.settled()
        assert "better still" in chat.shown
        await chat.type("/undo")
        await chat.until(lambda: chat.prompt.text == "two")
        assert chat.texts == ["one", "first answer"]


@on_screen
async def test_an_edit_of_the_last_question_and_escape_leaves_it() -> None:
    async with talk() as chat:
        await two_turns(chat)
        await chat.press("ctrl+up")
        assert chat.prompt.text == "two"
        await chat.until(lambda: "editing" in chat.screen.composer.note)
        await chat.press("escape")
        assert chat.prompt.text == ""
        assert chat.screen.composer.editing is None
        await chat.type("/edit 1")
        await chat.until(lambda: chat.prompt.text == "one")
        await chat.ask("uno")
        assert [each.content for each in chat.service.asks[-1].messages] == ["uno"]


@on_screen
async def test_a_selected_message_is_copied_edited_or_forked(copied: list[str]) -> None:
    async with talk() as chat:
        await two_turns(chat)
        await chat.press("tab", "up", "up")
        assert chat.conversation.selected is chat.app.chat.chat.messages[1]
        await chat.press("ctrl+y")
        await chat.until(lambda: copied == ["first answer"])
        await chat.type("/fork")
        await chat.pilot.pause()
        assert chat.texts == ["one", "first answer"]
        assert "copy now" in chat.told


@on_screen
async def test_a_message_stays_selected_while_a_command_is_typed(copied: list[str]) -> None:
    async with talk() as chat:
        await two_turns(chat)
        await chat.press("tab", "up", "up", "up", "down", *"/copy", "enter")
        await chat.until(lambda: copied == ["first answer"])
        await chat.press("down", *"/edit", "enter")
        assert chat.prompt.text == "two"
        await chat.press("escape", "tab")
        selected = [chat.conversation.selected]
        for keys in (("tab",), ("tab", "escape")):
            await chat.press(*keys)
            selected.append(chat.conversation.selected)
        assert [each and each.text for each in selected] == ["second answer", None, None]


@on_screen
async def test_copy_takes_the_answer_its_code_or_the_chat(copied: list[str]) -> None:
    async with talk() as chat:
        await chat.type("/copy")
        await chat.until(lambda: "nothing to copy" in chat.told)
        await chat.exchange("code", "see\n```py\na = 1\n```\n")
        for line in ("/copy", "/copy code", "/copy chat"):
            await chat.type(line)
            await chat.pilot.pause()
        await chat.until(lambda: len(copied) == 3)
        assert copied[:2] == ["see\n```py\na = 1\n```\n", "a = 1\n"]
        assert copied[2].startswith("# code")


@on_screen
async def test_export_and_screenshot_write_new_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with talk() as chat:
        await chat.exchange("what now?", "this")
        await chat.type("/export")
        await chat.type("/export talk.json")
        await chat.type("/screenshot shot.svg")
        await chat.until((tmp_path / "shot.svg").exists)
        assert (tmp_path / "what-now.md").read_text().count("\n## ") == 2
        found = json.loads((tmp_path / "talk.json").read_text())
        assert [each["text"] for each in found["messages"]] == ["what now?", "this"]
        assert found["messages"][1]["figures"]["decode_tps"] == 42.0
        assert "<svg" in (tmp_path / "shot.svg").read_text()
        await chat.type("/export talk.json")
        await chat.until(lambda: "exists already" in chat.told)
        for count in (2, 3):
            await chat.type("/export")
            await chat.until((tmp_path / f"what-now-{count}.md").exists)
        for command in ("/export", "/screenshot"):
            await chat.type(f"{command} /nowhere/x")
            await chat.until(lambda: "cannot be written" in chat.told)
            assert chat.app._notifications
            said = next(each.message for each in reversed(list(chat.app._notifications)))
            assert said == (
                "/nowhere/x cannot be written: No such file or directory; "
                "name a file in a folder that takes it"
            )


@on_screen
async def test_a_full_disk_leaves_no_half_of_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with talk() as chat:
        await chat.exchange("what now?", "words " * 99)
        with full_disk(50):
            await chat.type("/export talk.md")
            await chat.until(lambda: "cannot be written" in chat.told)
        assert not (tmp_path / "talk.md").exists()
        await chat.type("/export talk.md")
        await chat.until(lambda: "written to" in chat.told)
        assert "words" in (tmp_path / "talk.md").read_text()


@on_screen
async def test_settings_are_used_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    async with talk(settings_path=path) as chat:
        await chat.type("/set temp 0.7")
        await chat.type("/set max_tokens 9")
        await chat.type("/theme nord")
        await chat.until(lambda: chat.app.theme == "nord")
        await chat.type("/set temp warm")
        await chat.until(lambda: "expected a number" in chat.told)
        await chat.type("/set temp 101")
        await chat.until(lambda: "got temp=101, expected 0 to 100" in chat.told)
        await chat.type("/set seed -7")
        await chat.until(lambda: "got seed=-7, expected -1 (draws afresh) to 2^64" in chat.told)
        await chat.type("/set theme nosuch")
        await chat.until(lambda: "no theme 'nosuch'" in chat.told)
        await chat.type("/set allow_loops OFF")
        await chat.until(lambda: "allow_loops is off" in chat.told)
        await chat.type("/set top_p")
        await chat.until(lambda: "top_p is 1, the model's; /set top_p VALUE" in chat.told)
        await chat.ask("hi")
        ask = chat.service.asks[-1]
        assert (ask.sampling.temperature, ask.max_tokens) == (0.7, 9)
    assert settings_file.load(path) == (Settings(temp=0.7, max_tokens=9, theme="nord"), [])


@on_screen
async def test_flags_of_one_run_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    flags = Settings(temp=0.9, system="for once", max_tokens=7)
    async with talk(settings=flags, settings_path=path) as chat:
        await chat.type("/theme nord")
        await chat.until(lambda: chat.app.theme == "nord")
        assert settings_file.load(path)[0] == Settings(theme="nord")
        await chat.press("f2")
        await chat.until(lambda: isinstance(chat.app.screen, SettingsScreen))
        await chat.press("ctrl+s")
        await chat.until(lambda: not isinstance(chat.app.screen, SettingsScreen))
        assert settings_file.load(path)[0] == Settings(theme="nord")
        await chat.type("/set temp 0.9")
        await chat.until(lambda: "temp is 0.9" in chat.told)
        assert settings_file.load(path)[0] == Settings(theme="nord", temp=0.9)
        await chat.ask("hi")
        assert chat.service.asks[-1].max_tokens == 7


@on_screen
async def test_the_cache_is_changed_while_a_chat_runs(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    flags = Settings(hot=9)
    async with talk(settings=flags, settings_path=path) as chat:
        await chat.exchange("one", "1")
        await chat.type("/kv q8/q4")
        await chat.until(lambda: "the cache is q8/q4 now" in chat.told)
        assert chat.service.wishes == [flags.with_text("kv", "q8/q4").cache()]
        await chat.until(lambda: settings_file.load(path)[0] == Settings(kv="q8/q4"))
        await chat.type("/ctx 512")
        await chat.until(lambda: settings_file.load(path)[0] == Settings(kv="q8/q4", ctx=512))
        assert chat.app.chat.model is not None
        assert chat.app.chat.model.window == 512
        await chat.type("/ctx")
        await chat.until(lambda: "the window is 512 tokens" in chat.told)
        await chat.type("/kv x")
        await chat.until(lambda: "'x'" in chat.told)
        await chat.ask("two")
        await chat.type("/set keep system")
        await chat.until(lambda: "stop the answer first" in chat.told)
        chat.service.finish()
        await chat.settled()
        chat.service.load_error = EmberError("this does not fit in memory")
        await chat.type("/ctx 99999999")
        await chat.until(lambda: "the cache stays as it was" in chat.shown)
        assert chat.app.preferences.settings.ctx == 512
        assert settings_file.load(path)[0] == Settings(kv="q8/q4", ctx=512)
        assert chat.texts == ["one", "1", "two", ""]


@on_screen
async def test_the_settings_screen_changes_the_cache_and_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    async with talk(settings_path=path) as chat:
        await chat.press("f2")
        for name, value in (("hot", "64"), ("keep", "system"), ("temp", "0.5")):
            chat.app.screen.query_one(f"#{name}", Input).value = value
        await chat.press("ctrl+s")
        wanted = Settings(hot=64, keep="system", temp=0.5)
        await chat.until(lambda: settings_file.load(path)[0] == wanted)
        assert chat.service.wishes == [wanted.cache()]
        await chat.press("f4")
        assert isinstance(chat.app.screen, CacheScreen)


@on_screen
async def test_settings_that_could_not_be_saved_are_saved_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "settings.toml"
    path.parent.write_text("a file in the folder's place")
    async with talk(settings_path=path) as chat:
        await chat.type("/set temp 0.7")
        await chat.until(lambda: "cannot be saved" in chat.told)
        path.parent.unlink()
        await chat.type("/theme nord")
        await chat.until(lambda: chat.app.theme == "nord")
    assert settings_file.load(path)[0] == Settings(theme="nord", temp=0.7)


@on_screen
async def test_the_system_prompt_is_set_shown_and_removed() -> None:
    async with talk() as chat:
        await chat.type("/system speak like a pirate")
        await chat.ask("hi")
        assert chat.service.asks[-1].messages[0].content == "speak like a pirate"
        chat.service.finish()
        await chat.settled()
        await chat.type("/system")
        await chat.until(lambda: chat.prompt.text == "/system speak like a pirate")
        await chat.type("/system clear")
        assert chat.app.chat.chat.system == ""


@on_screen
async def test_commands_and_their_arguments_are_completed(tmp_path: Path) -> None:
    (tmp_path / "my notes.md").write_text("x")
    async with talk() as chat:
        offered = chat.screen.query_one(Suggestions)
        await chat.press("/", "e", "x")
        assert offered.display
        await chat.press("tab")
        assert chat.prompt.text == "/export "
        chat.prompt.put("/set te")
        await chat.pilot.pause()
        await chat.press("tab")
        assert chat.prompt.text == "/set temp"
        chat.prompt.put(f"see @{tmp_path}/my")
        await chat.pilot.pause()
        await chat.press("tab")
        assert chat.prompt.text == f'see @"{tmp_path}/my notes.md" '
        chat.prompt.put("/")
        await chat.pilot.pause()
        await chat.press("down", "down", "up", "enter")
        assert chat.prompt.text == "/retry "
        await chat.press("escape")
        assert not offered.display


@pytest.mark.parametrize(
    "argument",
    ["", "[/x] 99999999999999999999 \x1b", "9" * 5000, "x" * 5000],
    ids=["nothing", "odd", "a number", "a word"],
)
@on_screen
async def test_no_command_breaks_the_chat(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    async with talk(size=(80, 24)) as chat:
        for command in COMMANDS:
            if command.name == "quit":
                continue
            chat.screen.action_command(command.name, argument)
            await chat.pilot.pause()
            while chat.app.screen is not chat.screen:
                await chat.press("escape")
            if chat.service.answering:
                chat.service.finish()
            if chat.service.look is not None:
                chat.service.finish_look()
            await chat.until(lambda: not chat.app.chat.busy)
            assert all(len(each.message) < 500 for each in chat.app._notifications)
        chat.app.chat.new_chat()
        await chat.exchange("still there?", "yes")
        assert "yes" in chat.shown


@on_screen
async def test_every_hint_of_the_key_bar_can_be_clicked() -> None:
    async with talk(size=(160, 36)) as chat:
        bar = chat.screen.query_one(KeyBar)
        text = bar.render_line(0).text
        await chat.pilot.click(bar, offset=(text.index("Help"), 0))
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.press("escape")
        await chat.pilot.click(bar, offset=(text.index("KV"), 0))
        await chat.until(lambda: isinstance(chat.app.screen, CacheScreen))


@on_screen
async def test_every_theme_draws_a_conversation() -> None:
    async with talk() as chat:
        await chat.exchange("one", "# Title\n\n`code` and\n\n```python\nx = 1\n```\n")
        for name in chat.app.available_themes:
            chat.screen.action_command("theme", name)
            await chat.pilot.pause()
            assert chat.app.theme == name
        await chat.pilot.pause(0.1)


@on_screen
async def test_it_rings_when_done_and_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[bool] = []
    async with talk() as chat:
        monkeypatch.setattr(chat.app, "bell", lambda: rung.append(True))
        await chat.exchange("one", "1")
        assert rung == []
        await chat.ask("two")
        chat.app.app_focus = False
        chat.service.say("2")
        chat.service.finish()
        await chat.until(lambda: rung == [True])


@on_screen
async def test_bench_measures_beside_the_chat() -> None:
    async with talk() as chat:
        await chat.exchange("one", "1")
        await chat.type("/bench")
        await chat.until(lambda: chat.service.look is not None)
        assert isinstance(chat.app.screen, SpeedScreen)
        await chat.press("escape")
        await chat.type("/retry")
        await chat.until(lambda: "being measured" in chat.told)
        chat.service.finish_look()
        await chat.until(lambda: not chat.app.chat.busy)
        assert chat.texts == ["one", "1"]
        await chat.press("f3")
        page = chat.app.screen.query_one(Static)
        await chat.until(lambda: "measured by /bench" in str(page.render()))
        assert "prompt 256 tokens, 1284 tok/s" in str(page.render())
        assert "answer 32 tokens, 42.0 tok/s" in str(page.render())


@on_screen
async def test_bench_can_be_stopped() -> None:
    async with talk() as chat:
        await chat.type("/bench")
        await chat.until(lambda: chat.app.chat.busy)
        await chat.press("escape", "escape")
        await chat.until(lambda: not chat.app.chat.busy)
        assert chat.app.chat.look.result is None
        assert chat.app.chat.problem is None


@on_screen
async def test_a_theme_without_a_name_is_chosen_from_a_list() -> None:
    async with talk() as chat:
        await chat.type("/theme")
        await chat.until(lambda: isinstance(chat.app.screen, PaletteScreen))
        await chat.press(*"nord", "enter")
        await chat.until(lambda: chat.app.theme == "nord")


@on_screen
async def test_what_stands_after_a_command_that_takes_nothing_is_refused() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.type("/new about cats")
        await chat.until(lambda: "/new stands alone: got 'about cats' after it" in chat.told)
        assert chat.texts == ["one", "first answer"]


@on_screen
async def test_a_loop_is_told_below_the_answer_and_retried_otherwise() -> None:
    async with talk() as chat:
        await chat.ask("one")
        chat.service.say("round", " and", " round")
        chat.service.finish(FinishReason.LOOP)
        await chat.settled()
        assert "it repeats itself: stopped · ^R answers otherwise" in " ".join(chat.shown.split())
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.service.answering)
        assert chat.service.asks[-1].sampling == Sampling(temperature=0.8, repeat_penalty=1.2)
        await chat.until(lambda: "with temp 0.8 repeat_penalty 1.2, this once" in chat.told)
        chat.service.finish()
        await chat.settled()
        await chat.type("/retry temp 1.3 top_k 9")
        await chat.until(lambda: chat.service.answering)
        assert chat.service.asks[-1].sampling == Sampling(temperature=1.3, top_k=9)
        chat.service.finish()
        await chat.settled()
        await chat.type("/retry heat 1")
        await chat.until(lambda: "each with its value: /retry temp 0.7" in chat.told)


@on_screen
async def test_loops_are_allowed_by_a_setting() -> None:
    async with talk(settings=Settings(allow_loops=True)) as chat:
        await chat.ask("one")
        assert chat.service.asks[-1].allow_loops


@on_screen
async def test_settings_say_what_is_the_model_s_and_go_back_to_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    async with talk(settings_path=path) as chat:
        await chat.type("/set temp")
        await chat.until(lambda: "temp is 0, the model's; /set temp VALUE changes it" in chat.told)
        await chat.type("/set temp 0.7")
        await chat.until(
            lambda: "temp is 0.7, yours; /set temp model takes the model's, 0" in chat.told
        )
        await chat.press("f2")
        await chat.until(lambda: isinstance(chat.app.screen, SettingsScreen))
        field = chat.app.screen.query_one("#temp", Input)
        assert field.value == "0.7"
        other = chat.app.screen.query_one("#repeat_penalty", Input)
        assert (other.value, other.placeholder) == ("", "1, the model's")
        field.value = ""
        await chat.press("ctrl+s")
        await chat.until(lambda: not isinstance(chat.app.screen, SettingsScreen))
        assert settings_file.load(path)[0] == Settings()
        await chat.type("/set temp 0.5")
        await chat.type("/set temp model")
        await chat.until(lambda: "\ntemp is 0, the model's" in f"\n{chat.told}")
        await chat.type("/sampling")
        await chat.until(lambda: "recommended for the model: temp 0 top_p 1 top_k 0" in chat.told)
        await chat.ask("hi")
        assert chat.service.asks[-1].sampling == Sampling()
