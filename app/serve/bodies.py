"""What a request's body may say: OpenAI's words, checked, and as mlx-lm's handler reads them.

Knows no model: what a prompt's tokens are, and whether they fit, is the generator's. What ember
cannot do is refused by name, so that no request is answered otherwise than it was asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from app.serve.refusal import RefusalError
from kvcache.errors import short

Body = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_LISTED = ", ".join(_ROLES)
# Of a message beside its role and content.
_TEXTS = ("name", "tool_call_id", "reasoning_content")
_MOST_STOPS = 16
_SEEDS = 1 << 64
# Words of OpenAI that would change the answer, and what they may be.
_UNABLE: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "xtc_probability": (0,),
    "adapters": (),
    "draft_model": (),
    "functions": ([],),
    "audio": (),
    "prediction": (),
}


def read(raw: bytes) -> Body:
    """The JSON object of a request. Raises RefusalError."""
    try:
        body = json.loads(raw.decode(), parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise RefusalError("the body is nested too deeply") from None
    except ValueError as error:
        raise RefusalError(f"the body is no JSON in UTF-8: {error}") from None
    if not isinstance(body, dict):
        raise RefusalError(f"got a body that is {_kind(body)}, expected a JSON object")
    # Clients write null for what they do not set.
    return {name: value for name, value in body.items() if value is not None}


def chat(body: Body) -> Body:
    """Of /v1/chat/completions."""
    return _common(body) | {
        "messages": [_message(each, at) for at, each in enumerate(_list(body, "messages"))],
        "tools": _tools(body),
        "chat_template_kwargs": _thinking(body),
    }


def text(body: Body) -> Body:
    """Of /v1/completions, whose `logprobs` is a number of likeliest tokens."""
    made = _common(body)
    match body.get("prompt"):
        case str() | [str()] as given:
            made["prompt"] = given if isinstance(given, str) else given[0]
        case [*ids] if ids and all(_is_whole(each) for each in ids):
            made["prompt"] = ids
        case _:
            raise RefusalError("got no prompt, expected a text, or a list of token ids")
    asked = body.get("logprobs", False)
    if _is_whole(asked):
        made |= {"logprobs": True, "top_logprobs": asked or -1}
    return made


def _common(body: Body) -> Body:
    for name, allowed in _UNABLE.items():
        if name in body and body[name] not in allowed:
            raise RefusalError(f"{name} is not supported: got {_shown(body[name])}, leave it out")
    if _object(body, "response_format").get("type", "text") != "text":
        raise RefusalError("response_format is not supported but for text: leave it out")
    made = {name: value for name, value in body.items() if name not in _UNABLE}
    options = _object(body, "stream_options")
    made["stream_options"] = {"include_usage": bool(options.get("include_usage", False))}
    made["stop"] = _stops(body)
    if "seed" in body:
        if not _is_whole(body["seed"]):
            raise RefusalError(f"got seed={_shown(body['seed'])}, expected a whole number")
        made["seed"] = body["seed"] % _SEEDS
    bias = _object(body, "logit_bias")
    if not all(isinstance(each, int | float) for each in bias.values()):
        raise RefusalError("got a logit_bias that is no number, expected numbers by token id")
    return made


def _message(said: object, at: int) -> Body:
    if not isinstance(said, dict):
        raise RefusalError(f"messages[{at}] is {_kind(said)}, expected an object")
    role = said.get("role")
    if role not in _ROLES:
        raise RefusalError(f"messages[{at}] has role {_shown(role)}, expected one of {_LISTED}")
    calls = _calls(said.get("tool_calls"), at)
    if said.get("content") is None and not calls:
        raise RefusalError(f"messages[{at}] has no content, expected a text")
    kept = {key: said[key] for key in _TEXTS if isinstance(said.get(key), str)}
    made = {
        **kept,
        "role": "system" if role == "developer" else role,
        "content": _content(said.get("content"), at),
    }
    return made | ({"tool_calls": calls} if calls else {})


def _content(given: object, at: int) -> str:
    match given:
        case None:
            return ""
        case str():
            return given
        case [*parts]:
            return "".join(_part(each, at) for each in parts)
    raise RefusalError(f"messages[{at}] has content that is {_kind(given)}, expected a text")


def _part(given: object, at: int) -> str:
    match given:
        case {"type": "text" | "input_text", "text": str(said)}:
            return said
        case {"type": str(kind)} if kind not in ("text", "input_text"):
            raise RefusalError(
                f"messages[{at}] has a part of type {_shown(kind)}: the model reads text alone"
            )
    raise RefusalError(f"messages[{at}] has a part that is no text")


def _calls(given: object, at: int) -> list[Body]:
    """Earlier calls of tools; their arguments as objects, as templates take them."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise RefusalError(f"messages[{at}] has tool_calls that are {_kind(given)}")
    return [_call(each, at) for each in given]


def _call(given: object, at: int) -> Body:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusalError(f"messages[{at}] has a tool call without a function's name")
    name, arguments = function["name"], function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_no_number)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise RefusalError(f"messages[{at}] calls {_shown(name)} with what is no JSON object")
    called = given["id"] if isinstance(given, dict) and isinstance(given.get("id"), str) else ""
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": called, "function": function}


def _tools(body: Body) -> list[Body]:
    tools, choice = body.get("tools", []), body.get("tool_choice", "auto")
    if not isinstance(tools, list):
        raise RefusalError(f"got tools that are {_kind(tools)}, expected a list")
    for at, each in enumerate(tools):
        match each:
            case {"type": "function", "function": {"name": str()}}:
                continue
        raise RefusalError(f"tools[{at}] is no function with a name")
    if choice not in ("auto", "none"):
        raise RefusalError(f"tool_choice is auto or none here: got {_shown(choice)}")
    return tools if choice == "auto" else []


def _thinking(body: Body) -> Body:
    """Whether the model is to think, where the request says it."""
    said = _object(body, "chat_template_kwargs")
    if unknown := [name for name in said if name != "enable_thinking"]:
        raise RefusalError(
            f"chat_template_kwargs takes enable_thinking alone: got {_shown(unknown[0])}"
        )
    if "enable_thinking" in said:
        return {"enable_thinking": bool(said["enable_thinking"])}
    return {"enable_thinking": False} if body.get("reasoning_effort") == "none" else {}


def _stops(body: Body) -> list[str]:
    match body.get("stop", []):
        case str(one):
            return [one] if one else []
        case [*stops] if len(stops) <= _MOST_STOPS and all(isinstance(s, str) for s in stops):
            return [each for each in stops if each]
    raise RefusalError(f"got stop that is no text, nor a list of at most {_MOST_STOPS} texts")


def _list(body: Body, name: str) -> Sequence[object]:
    given = body.get(name)
    if not isinstance(given, list) or not given:
        raise RefusalError(f"got {name} that are {_kind(given)}, expected a list of at least one")
    return given


def _object(body: Body, name: str) -> Body:
    given = body.get(name, {})
    if not isinstance(given, dict):
        raise RefusalError(f"got {name} that is {_kind(given)}, expected an object")
    return given


def _is_whole(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _finite(said: str) -> float:
    number = float(said)
    if not math.isfinite(number):
        _no_number(said)
    return number


def _no_number(said: str) -> NoReturn:
    raise ValueError(f"{short(said)} is no number")


def _shown(given: object) -> str:
    return short(json.dumps(given))


def _kind(given: object) -> str:
    match given:
        case None:
            return "missing"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case []:
            return "an empty list"
        case [*_]:
            return "a list"
    return "an object"
