"""Answers over HTTP by OpenAI's own client: what they say, and that they are the model's."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.serve.server_settings import ServerSettings
from tests.app.serve.conftest import EXACT, Serve, Served
from tests.patience import wait_until

MODEL = "small"
LENGTHS = (10, 40, 333, 64, 1000, 129, 3000, 700)


def prompt(length: int) -> list[int]:
    """So many token ids."""
    return [3 + (7 * at * at + length) % 600 for at in range(length)]


def complete(served: Served, ids: Sequence[int], count: int = 12, **more: Any) -> Any:
    given = {"temperature": 0, **more}
    return served.client.completions.create(
        model=MODEL, prompt=list(ids), max_tokens=count, **given
    )


def ask(served: Served, text: str, **more: Any) -> Any:
    given = {"max_tokens": 8, "temperature": 0, **more}
    return served.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], **given
    )


def test_a_chat_is_answered_with_its_figures(served: Served) -> None:
    answer = ask(served, "Hi there")
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.model == MODEL
    # Said once it is answered.
    said = "POST /v1/chat/completions: "
    wait_until(lambda: any(line.startswith(said) for line in served.lines))


def test_a_stream_says_the_same_in_pieces(served: Served) -> None:
    whole = ask(served, "Say it in pieces")
    chunks = list(
        ask(served, "Say it in pieces", stream=True, stream_options={"include_usage": True})
    )
    pieces = [each.choices[0] for each in chunks if each.choices]
    assert "".join(each.delta.content or "" for each in pieces) == whole.choices[0].message.content
    assert len(pieces) > 1
    assert [each.finish_reason for each in pieces if each.finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert {each.object for each in chunks} == {"chat.completion.chunk"}


def test_stop_strings_end_an_answer_before_them(served: Served) -> None:
    whole = complete(served, prompt(20), 30).choices[0].text
    # In the middle of the text, wherever tokens begin and end.
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    before = whole[: whole.index(stop)]
    answer = complete(served, prompt(20), 30, stop=[stop, "never said"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (before, "stop")
    assert answer.usage.completion_tokens < 30
    chunks = list(complete(served, prompt(20), 30, stop=stop, stream=True))
    assert "".join(each.choices[0].text for each in chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_draws_the_same_whoever_else_asks(served: Served) -> None:
    def drawn(seed: int | None) -> str:
        return str(complete(served, prompt(30), seed=seed, temperature=2.0).choices[0].text)

    with ThreadPoolExecutor(6) as pool:
        beside = [pool.submit(drawn, None) for _ in range(3)]
        same = [pool.submit(drawn, 5) for _ in range(3)]
        assert {each.result() for each in same} == {drawn(5)}
        assert len({drawn(6), drawn(7), drawn(-1), *(each.result() for each in beside)}) > 1


def test_logprobs_are_of_the_tokens_that_were_drawn(served: Served) -> None:
    answer = ask(served, "How likely?", logprobs=True, top_logprobs=3, temperature=1.5, seed=3)
    said = answer.choices[0].logprobs.content
    spelled = b"".join(bytes(each.bytes) for each in said).decode(errors="replace")
    assert spelled.strip() == answer.choices[0].message.content.strip()
    for each in said:
        likeliest = [one.logprob for one in each.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert each.logprob <= likeliest[0] + 1e-6 < 1e-6
        assert bytes(each.bytes).decode(errors="replace") == each.token
    chunks = ask(
        served, "How likely?", logprobs=True, top_logprobs=3, temperature=1.5, seed=3, stream=True
    )
    streamed = [
        one
        for each in chunks
        if each.choices[0].logprobs
        for one in each.choices[0].logprobs.content
    ]
    assert [each.logprob for each in streamed] == pytest.approx(
        [each.logprob for each in said], abs=1e-3
    )


def test_completions_tell_logprobs_as_their_own_form_has_them(served: Served) -> None:
    said = complete(served, prompt(9), 4, logprobs=2).choices[0].logprobs
    assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == 4
    assert max(said.top_logprobs[0].values()) == pytest.approx(said.token_logprobs[0])


def test_what_was_read_before_is_not_read_again(served: Served) -> None:
    told = [{"role": "system", "content": "Be short. " * 20}]

    def asked(text: str) -> Any:
        messages = [*told, {"role": "user", "content": text}]
        return served.client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=4, temperature=0
        )

    cold = asked("One")
    again, other = asked("One"), asked("Two")
    assert again.choices[0].message.content == cold.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= cold.usage.prompt_tokens - 2
    assert other.usage.prompt_tokens_details.cached_tokens > 60


def test_a_prompt_that_goes_another_way_begins_where_they_part(
    served: Served, serve: Serve
) -> None:
    shared = prompt(901)
    one, other = ([*shared, *range(start, start + 23)] for start in (90, 30))
    first = complete(served, one)
    told = complete(served, other)
    assert 800 < told.usage.prompt_tokens_details.cached_tokens <= 901
    alone = complete(serve(ServerSettings(cache=EXACT)), other)
    assert not alone.usage.prompt_tokens_details.cached_tokens
    assert told.choices[0].text == alone.choices[0].text
    # What was kept is still what it was.
    assert complete(served, one).choices[0].text == first.choices[0].text


def test_eight_at_once_are_each_what_they_are_alone(served: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: complete(served, prompt(n)).choices[0].text, LENGTHS))
    alone = [complete(served, prompt(each)).choices[0].text for each in LENGTHS]
    assert together == alone
    assert len(set(together)) > 1
