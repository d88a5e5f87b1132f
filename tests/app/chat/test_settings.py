import os
import stat
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import cli
from app.cache_flags import bits_of, cache_config, load_options
from app.chat import settings as file
from app.chat.settings import Preferences, Settings
from app.commands import chat
from app.sampling import Sampling
from kvcache import CacheConfig, EmberError
from models.sampling_defaults import GENERIC, Recommended
from tests.full_disk import full_disk


@given(
    st.builds(
        Settings,
        model=st.text(),
        system=st.text(),
        temp=st.floats(0, 100),
        top_k=st.integers(0, 2**31 - 1),
        seed=st.integers(-1, 2**64 - 1),
        panes=st.booleans(),
    )
)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, found: Settings) -> None:
    path = tmp_path_factory.mktemp("config") / "deep" / "settings.toml"
    assert file.change(path, asdict(found)) == []
    readable = {
        name: getattr(found, name).encode("utf-8", "replace").decode("utf-8")
        for name in ("model", "system")
    }
    assert file.load(path) == (replace(found, **readable), [])


@pytest.mark.parametrize(
    "text",
    ["", "nan", "-1", "1e999", "\u0664", "9" * 30, "9" * 5000, "x" * 5000, "a\nb", "\U0001f600"],
    ids=lambda text: ascii(text[:4]) + str(len(text)),
)
@pytest.mark.parametrize("name", [each.name for each in fields(Settings)])
def test_what_is_typed_is_refused_or_comes_back(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    settings, told = Settings(), ""
    try:
        settings = settings.with_text(name, text)
    except EmberError as error:
        told = str(error)
    file.change(path, {name: getattr(settings, name)})
    assert file.load(path) == (settings, [])
    assert len(told) < 500


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert file.load(tmp_path / "none.toml") == (Settings(), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("top_k = 7\ncolour = 1", "no setting 'colour'"),
        ('top_k = 7\ntemp = "hot"', "expected a number"),
        ("top_k = 7\ntemp = -1.0", "got temp=-1,"),
        ("top_k = 7\ntemp = nan", "got temp=nan"),
        ("top_k = 7\nmax_tokens = 0", "expected 1 to 2147483647"),
        (
            "top_k = 7\nseed = 99999999999999999999999",
            "got seed=99999999999999999999999, expected 0 to",
        ),
        ("top_k = 7\npanes = 1", "on or off"),
        ("top_k = 7\n[theme]\nname = 1", "got theme={'name': 1}, expected text"),
    ],
)
def test_one_wrong_setting_leaves_the_others_in_force(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    settings, (line,) = file.load(path)
    assert settings == Settings(top_k=7)
    assert said in line
    assert str(path) in line


_UNREADABLE = [
    b"temp = ",
    b"\xff\xfe",
    b"top_k = " + b"9" * 5000,
    b"top_k = " + b"[" * 99_999,
    b"temp = 0.5\nsystem = 'cut sho",
    bytes(range(256)),
]


@pytest.mark.parametrize("content", _UNREADABLE, ids=range(len(_UNREADABLE)))
def test_a_damaged_file_means_defaults_and_is_kept_aside_by_a_change(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    settings, (line,) = file.load(path)
    assert settings == Settings()
    assert "cannot be read" in line
    assert "\n" not in line
    assert path.read_bytes() == content
    (kept,) = file.change(path, {"theme": "nord"})
    aside = tmp_path / "settings.toml.damaged-1"
    assert str(aside) in kept
    assert aside.read_bytes() == content
    assert file.load(path) == (Settings(theme="nord"), [])


def test_a_folder_in_its_place_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.mkdir()
    settings, (line,) = file.load(path)
    assert settings == Settings()
    assert "cannot be read" in line


def test_a_file_cut_anywhere_starts(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    file.change(path, {"system": 'say "hi"\n', "temp": 0.7, "bell": False, "model": "a b"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        settings, _ = file.load(path)
        assert settings.temp in (None, 0.0, 0.7)


def test_what_a_newer_ember_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        "\ufeffcolour = {red = [1, 2.5, inf], 'a b' = \"\\u0007\"}\nborn = 2026-11-26T21:00:00Z\n"
        "at = 07:30:00\ntemp = 0.5\n[more.deep]\non = true\n",
        encoding="utf-8",
    )
    before = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    file.change(path, {"top_k": 7, "temp": None})
    after = tomllib.loads(path.read_text(encoding="utf-8"))
    assert after == {name: before[name] for name in before if name != "temp"} | {"top_k": 7}


def test_two_windows_keep_what_the_other_saved(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    file.change(path, {"temp": 0.5})
    file.change(path, {"theme": "nord"})
    assert file.load(path)[0] == Settings(temp=0.5, theme="nord")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    file.change(path, {"theme": "nord"})
    with full_disk(7), pytest.raises(EmberError, match="the settings cannot be saved"):
        file.change(path, {"temp": 0.5})
    assert file.load(path) == (Settings(theme="nord"), [])
    assert not list(tmp_path.glob(".settings*"))


def test_the_file_is_private_and_a_link_to_it_stays(tmp_path: Path) -> None:
    folder, real = tmp_path / "ember", tmp_path / "dotfiles.toml"
    folder.mkdir()
    folder.chmod(0o755)
    real.write_text("top_k = 7")
    real.chmod(0o644)
    path = folder / "settings.toml"
    path.symlink_to(real)
    before = os.umask(0)
    try:
        assert file.change(path, {"theme": "nord"}) == []
    finally:
        os.umask(before)
    assert path.is_symlink()
    assert file.load(path)[0] == Settings(top_k=7, theme="nord")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, real)] == [0o700, 0o600]


def test_settings_as_typed() -> None:
    changed = Settings().with_text("temp", "0.7").with_text("panes", "OFF").with_text("seed", "7")
    assert (changed.temp, changed.panes, changed.sampling(GENERIC).seed) == (0.7, False, 7)
    for name, text in (("temp", "warm"), ("temp", "nan"), ("top_k", "1.5"), ("bell", "loud")):
        with pytest.raises(EmberError, match=f"got {name}="):
            Settings().with_text(name, text)
    with pytest.raises(EmberError, match="no setting 'tempo'"):
        Settings().with_text("tempo", "1")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep", " １７ ", "17"),
        ("cache_store", "５１２ＭＢ", "512MB"),
        ("kv", "ｑ8／ｑ4", "q8/q4"),
        ("bell", "ＯＮ", True),
        ("temp", "０．５", 0.5),
        ("temp", "ｍｏｄｅｌ", None),
        ("think", " on ", "on"),
        ("system", "  \t ", ""),
        ("system", " be brief ", " be brief "),
    ],
)
def test_what_is_typed_in_another_width_or_is_blank(name: str, text: str, value: object) -> None:
    assert getattr(Settings(temp=1.0).with_text(name, text), name) == value


@pytest.mark.parametrize(("name", "text"), [("max_tokens", "10²"), ("seed", "①②")])
def test_other_signs_of_numbers_are_none(name: str, text: str) -> None:
    with pytest.raises(EmberError, match=f"got {name}='{text}', expected a whole number"):
        Settings().with_text(name, text)


def test_sampling_is_the_model_s_until_the_user_sets_it() -> None:
    recommended = Recommended(temp=0.6, top_k=20)
    settings = Settings()
    assert settings.own_sampling() == {}
    assert settings.sampling(recommended) == Sampling(temperature=0.6, top_k=20)
    settings = settings.with_text("temp", "0").with_text("top_k", "7")
    assert settings.own_sampling() == {"temp": 0.0, "top_k": 7}
    assert settings.sampling(recommended) == Sampling(temperature=0.0, top_k=7)
    back = settings.with_text("temp", "model").with_text("top_k", " ")
    assert back == Settings()
    with pytest.raises(EmberError, match="got max_tokens='model', expected a whole number"):
        settings.with_text("max_tokens", "model")


def test_what_is_the_model_s_again_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    preferences = Preferences(Settings(), path, lambda _: None)
    preferences.change(preferences.settings.with_text("temp", "0"))
    assert file.load(path)[0] == Settings(temp=0.0)
    preferences.change(preferences.settings.with_text("temp", "model"))
    assert file.load(path)[0] == Settings()
    assert "temp" not in path.read_text()


def test_the_cache_as_typed() -> None:
    settings = Settings().with_text("kv", "q8/q4").with_text("ctx", "512").with_text("hot", "64")
    wish = settings.with_text("keep", "system").cache()
    assert (wish.kv, wish.ctx, wish.hot, wish.keep) == ("q8/q4", 512, 64, "system")
    budgeted = CacheConfig(budget=1 << 20, sinks=3, keep=9)
    config = wish.over(budgeted)
    assert (config.keys, config.values, config.max_tokens, config.budget) == ("q8", "q4", 512, None)
    assert (config.hot, config.keep, config.sinks) == (64, 0, 3)
    config = Settings(keep="17").cache().over(budgeted)
    assert (config.max_tokens, config.budget, config.keep) == (None, 1 << 20, 17)
    assert Settings().cache().over(CacheConfig()) == CacheConfig()
    # Which codecs bits are, the model's file tells.
    assert settings.with_text("kv", "3.4").cache().kv == "3.4"
    config = Settings(kv="3.4").cache().over(CacheConfig(keys="q8"))
    assert (config.keys, config.values) == (CacheConfig().keys, CacheConfig().values)
    for name, text in (
        ("kv", "x"),
        ("kv", "0.5"),
        ("ctx", "-1"),
        ("hot", "many"),
        ("keep", "-1"),
        ("room", "-3"),
    ):
        with pytest.raises(EmberError, match=r"got|no codec|unknown"):
            settings.with_text(name, text)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ("q8", 700, 64, "system")),
        (("--kv", "q4", "--hot", "9"), ("q4", 700, 9, "system")),
        (("--kv", "3.4"), ("3.4", 700, 64, "system")),
        (("--ctx", "99", "--keep", "7"), ("q8", 99, 64, "7")),
        (("--kv-budget", "64MiB"), ("q8", 0, 64, "system")),
    ],
)
def test_flags_of_the_cache_go_before_the_file_and_are_not_kept(
    home: Path, flags: tuple[str, ...], expected: tuple[str, int, int, str]
) -> None:
    kept = {"kv": "q8", "ctx": 700, "hot": 64, "keep": "system"}
    path = file.default_path()
    assert file.change(path, kept) == []
    args = cli.parser().parse_args(["chat", *flags])
    settings, notices = chat._settings(args)
    assert notices == []
    assert (settings.kv, settings.ctx, settings.hot, settings.keep) == expected
    chat._take_cache(args, settings)
    config = cache_config(args)
    bits = bits_of(expected[0])
    assert load_options(args).bits == bits
    assert (config.keys, config.max_tokens, config.hot) == (
        expected[0] if bits is None else CacheConfig().keys,
        expected[1] or None,
        expected[2],
    )
    Preferences(settings, path, lambda _: None).change(replace(settings, bell=False))
    assert tomllib.loads(path.read_text()) == kept | {"bell": False}


def test_thinking_as_typed() -> None:
    settings = Settings().with_text("think", "off").with_text("think_budget", "0")
    assert (settings.think, settings.think_budget) == ("off", 0)
    assert file.THINK[settings.think] is False
    with pytest.raises(EmberError, match="got think='maybe', expected auto, on, off"):
        settings.with_text("think", "maybe")
    with pytest.raises(EmberError, match="got think_budget=-1, expected 0 to"):
        settings.with_text("think_budget", "-1")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ("on", 70, True)),
        (("--think", "off"), ("off", 70, True)),
        (("--think", "show"), ("on", 70, True)),
        (("--think", "hide", "--think-budget", "9"), ("on", 9, False)),
    ],
)
def test_flags_of_thinking_go_before_the_file(
    home: Path, flags: tuple[str, ...], expected: tuple[str, int, bool]
) -> None:
    kept = {"think": "on", "think_budget": 70, "show_thinking": True}
    assert file.change(file.default_path(), kept) == []
    settings, notices = chat._settings(cli.parser().parse_args(["chat", *flags]))
    assert notices == []
    assert (settings.think, settings.think_budget, settings.show_thinking) == expected
