"""What a user may set, and the TOML file it is kept in.

Flags of the command line go before the file, the file before the defaults. The
file holds what the user has saved, and never the flags of one run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import platformdirs

from app import private, texts, toml_file
from app.cache_flags import DEFAULT_CACHE_STORE, KEEP_SYSTEM, bytes_or_none, pair_of
from app.chat.state import OWN_SAMPLING, AnswerSettings
from app.options import DEFAULT_THINK_BUDGET, MOST_TOKENS
from app.sampling import Sampling
from app.service.contract import CacheWish
from kvcache import CacheConfig
from kvcache.config import DEFAULT_KV
from kvcache.errors import EmberError, quoted, reason, short
from models.sampling_defaults import GENERIC, Recommended

# Whether a model is to think, where it can be told.
THINK: dict[str, bool | None] = {"auto": None, "on": True, "off": False}
# What a user types to leave a setting of sampling to the model, as an empty one does.
BY_MODEL = "model"


def default_path() -> Path:
    """Where the settings are: in the user's configuration folder."""
    return platformdirs.user_config_path("ember") / "settings.toml"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the chat. seed -1 draws afresh each time; think is one of `THINK`.

    temp to repeat_penalty: None is as the model's makers recommend.
    allow_loops: an answer that says the same again and again is not stopped.
    lookup: draft tokens from the context.
    room: tokens of the window left for an answer where turns must be left out; 0: max_tokens.
    kv, ctx, hot, keep: of the cache, as `CacheWish` has them.
    cache_store: a size as text, from the next start on.
    """

    theme: str = "ember"
    model: str = ""
    system: str = ""
    temp: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int = -1
    max_tokens: int = 512
    allow_loops: bool = False
    think: str = "auto"
    think_budget: int = DEFAULT_THINK_BUDGET
    show_thinking: bool = False
    lookup: bool = True
    room: int = 0
    kv: str = DEFAULT_KV
    ctx: int = 0
    hot: int = CacheConfig.hot
    keep: str = "0"
    cache_store: str = DEFAULT_CACHE_STORE
    panes: bool = True
    bell: bool = True

    def __post_init__(self) -> None:
        for name in _TYPES:
            object.__setattr__(self, name, _typed(name, getattr(self, name)))
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise EmberError(
                f"got max_tokens={short(str(self.max_tokens))}, expected 1 to {MOST_TOKENS}"
            )
        if self.seed < -1:
            raise EmberError(
                f"got seed={short(str(self.seed))}, expected -1 (draws afresh) to 2^64 - 1"
            )
        if self.think not in THINK:
            raise EmberError(f"got think={quoted(self.think)}, expected {', '.join(THINK)}")
        for name in ("think_budget", "room", "ctx", "hot"):
            if not 0 <= (count := getattr(self, name)) <= MOST_TOKENS:
                raise EmberError(f"got {name}={short(str(count))}, expected 0 to {MOST_TOKENS}")
        if self.keep != KEEP_SYSTEM and texts.count(self.keep, MOST_TOKENS) is None:
            raise EmberError(
                f"got keep={quoted(self.keep)}, expected {KEEP_SYSTEM} or 0 to {MOST_TOKENS}"
            )
        pair_of(self.kv)
        self.cache_store_bytes()
        self.sampling(GENERIC)

    def cache_store_bytes(self) -> int:
        """Bytes of encoded chats on disk; 0: none are kept. Raises EmberError."""
        return bytes_or_none(self.cache_store)

    def cache(self) -> CacheWish:
        """What of the cache is set."""
        return CacheWish(kv=self.kv, ctx=self.ctx, hot=self.hot, keep=self.keep)

    def with_cache(self, wish: CacheWish) -> Self:
        """A copy with another cache."""
        return replace(self, **asdict(wish))

    def own_sampling(self) -> dict[str, float]:
        """The settings of sampling that the user has set."""
        found = {name: getattr(self, name) for name in OWN_SAMPLING}
        return {name: value for name, value in found.items() if value is not None}

    def sampling(self, recommended: Recommended) -> Sampling:
        """What the user has set, else what is recommended. Raises EmberError out of bounds."""
        values: dict[str, Any] = recommended.values | self.own_sampling()
        known = {OWN_SAMPLING[name]: value for name, value in values.items()}
        return Sampling(**known, seed=None if self.seed == -1 else self.seed)

    def answers(self, stop: tuple[str, ...]) -> AnswerSettings:
        """How answers are made, which end at a text of `stop` too."""
        return AnswerSettings(
            sampling=self.own_sampling(),
            seed=None if self.seed == -1 else self.seed,
            max_tokens=self.max_tokens,
            stop=stop,
            think=THINK[self.think],
            think_budget=self.think_budget,
            lookup=self.lookup,
            allow_loops=self.allow_loops,
            room=self.room,
        )

    def with_text(self, name: str, text: str) -> Self:
        """A copy with one setting as a user types it. Raises EmberError."""
        if name not in _TYPES:
            raise EmberError(f"no setting {quoted(name)}: there are {', '.join(_TYPES)}")
        if name not in _AS_TYPED:
            text = text.translate(_NARROW).strip()
        elif not text.strip():
            text = ""
        if name in OWN_SAMPLING and text in ("", BY_MODEL):
            none: dict[str, Any] = {name: None}
            return replace(self, **none)
        kind = _TYPES[name]
        value: Any
        try:
            value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise EmberError(f"got {name}={quoted(text)}, expected {_KINDS[kind]}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise EmberError(f"got {name}={quoted(text)}, expected {_KINDS[kind]}")
        return replace(self, **{name: value})


class Preferences:
    """The settings in force, flags of this run included, and the file of those to keep.

    path: None keeps none. use: is told of other settings.
    """

    def __init__(
        self, settings: Settings, path: Path | None, use: Callable[[Settings], None]
    ) -> None:
        self.settings = settings
        self._path, self._use = path, use
        self._unsaved: dict[str, Any] = {}

    def change(self, settings: Settings, *named: str) -> list[str]:
        """Use other settings, and keep what differs from the present ones, or is named.

        Flags of this run are in force, and so are not to be kept. Returns what
        `change` of the file does; raises EmberError where they cannot be saved.
        """
        now = asdict(self.settings)
        self._unsaved |= {
            name: value
            for name, value in asdict(settings).items()
            if value != now[name] or name in named
        }
        self.settings = settings
        self._use(settings)
        if self._path is None or not self._unsaved:
            return []
        notes = change(self._path, self._unsaved)
        self._unsaved.clear()
        return notes


_KINDS: dict[type[Any], str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "on or off",
}
_HEADING = "# Settings of the ember chat; F2 or /set changes them."
_WHAT = "the settings"
# The others are words and numbers, in whatever width they are typed.
_AS_TYPED = ("theme", "model", "system")
_NARROW: dict[int, int | str] = {
    0x3000: " ",
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
}
_BOOLEANS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
# Of each setting, its values' type.
_TYPES: dict[str, type[Any]] = {each.name: type(each.default) for each in fields(Settings)}
_TYPES.update(dict.fromkeys(OWN_SAMPLING, float), top_k=int)


def _typed(name: str, value: object) -> object:
    """A value of the setting's type. Raises EmberError."""
    kind = _TYPES[name]
    if value is None and name in OWN_SAMPLING:
        return None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise EmberError(f"got {name}={quoted(value)}, expected {_KINDS[kind]}")
    return value


def load(path: Path) -> tuple[Settings, list[str]]:
    """The settings in a file, and a line where some of them cannot be used.

    Defaults stand for what is wrong or not there; no file keeps ember from starting.
    """
    settings, wrong = Settings(), []
    try:
        found = toml_file.read(path, _WHAT)
    except EmberError as error:
        return settings, [f"{error}; the defaults are used"]
    for name, value in found.items():
        if name not in _TYPES:
            wrong.append(f"no setting {quoted(name)}")
            continue
        try:
            settings = replace(settings, **{name: value})
        except EmberError as error:
            wrong.append(str(error))
    return settings, [f"{path}: {'; '.join(wrong)}: not used"] if wrong else []


def change(path: Path, changes: Mapping[str, Any]) -> list[str]:
    """Write these settings into the file; what else is in it stays. Raises EmberError.

    Returns a line where the file was damaged and is now kept under another name.
    """
    try:
        found, notes = toml_file.read_to_write(path, _WHAT)
        defaults = asdict(Settings())
        kept = {
            name: value
            for name, value in (found | dict(changes)).items()
            if name not in defaults or value != defaults[name]
        }
        toml_file.write(path, _HEADING, kept)
    except OSError as error:
        raise EmberError(f"{path}: the settings cannot be saved ({reason(error)})") from error
    return [*notes, *private.narrow([path.parent])]
