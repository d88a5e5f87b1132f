"""Small things that the chat's parts hand to each other."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from app.flag_words import with_flags
from app.sampling import Sampling
from app.sessions.chat import Attachment
from kvcache.errors import EmberError
from models.text.thinking import DEFAULT_BUDGET

# Sampling settings that a chat may have of its own, by what the user calls them.
OWN_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
}


# What a retry draws by at least, after an answer that went round in circles.
_LIVELY, _VARIED, _STEP = 0.8, 1.1, 0.1
# What a retry draws by where the likeliest tokens alone would give the same answer.
DRAWN = {"temp": 0.7, "top_p": 0.95}


def livelier(sampling: Sampling) -> dict[str, float]:
    """Settings by which an answer hardly says the same again and again."""
    return {
        "temp": max(sampling.temperature, _LIVELY),
        "repeat_penalty": round(max(sampling.repeat_penalty, _VARIED) + _STEP, 2),
    }


def with_own(sampling: Sampling, own: Mapping[str, float]) -> Sampling:
    """Sampling with what a chat has of its own, but what of that is out of bounds."""
    known: dict[str, Any] = {OWN_SAMPLING[name]: own[name] for name in own if name in OWN_SAMPLING}
    for name, value in known.items():
        with suppress(EmberError):
            sampling = replace(sampling, **{name: value})
    return sampling


class Phase(Enum):
    """What the model is doing."""

    NO_MODEL = "no model"
    LOADING = "loading"
    READY = "ready"
    READING = "reading"
    ANSWERING = "answering"
    MEASURING = "measuring"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question as typed."""

    text: str
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that went wrong, and why."""

    title: str
    cause: str

    @classmethod
    def of(cls, title: str, error: BaseException) -> "Problem":
        """From what was raised; a fault of ember's own is told as one."""
        if isinstance(error, EmberError):
            return cls(title=title, cause=with_flags(error))
        return cls(title=title, cause=f"{type(error).__name__}: {error} (a fault of ember's own)")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are made. think, think_budget, lookup, allow_loops: as for `Ask`.

    sampling: what the user has set of it, by name; the rest is as the model's makers recommend.
    room: tokens left for an answer where turns must be left out; 0: max_tokens.
    """

    sampling: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    think: bool | None = None
    think_budget: int = DEFAULT_BUDGET
    lookup: bool = True
    allow_loops: bool = False
    room: int = 0
