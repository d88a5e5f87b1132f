"""Answer one prompt, or a file of prompts, and end."""

import argparse
import select
import sys
from typing import TYPE_CHECKING

from app import cache_flags, options, prompt_words, texts
from app.prompt_words import STDIN
from app.streams import print_json
from kvcache.errors import EmberError, quoted

if TYPE_CHECKING:
    from app.console import Answer
    from app.engine import Request
    from app.interrupt import Cancel
    from app.session import Session

# Who pipes nothing in is told, after so many seconds, what is waited for.
_PATIENCE = 2.0
_EXAMPLES = """\
ember run smollm2 "Why is the sky blue?"
ember run "Why is the sky blue?"                 # the default model
ember run smollm2 "Summarize this:" <notes.txt   # the prompt, a blank line, the file
git diff | ember run smollm2 - "What changed?"   # stdin first
ember run smollm2 <prompt.txt                    # stdin alone
ember run smollm2 "Name a colour" --temp 0.7 --seed 1 --json
"""
_JOINED = (
    "the prompt; what is piped in follows it after a blank line, or stands where - does "
    "(default: stdin alone; </dev/null leaves it out)"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_examples(parser, _EXAMPLES)
    options.add_model(parser)
    parser.add_argument("words", nargs="*", type=texts.flag, metavar="PROMPT", help=_JOINED)
    options.add_chat_template(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("-p", "--prompt", type=texts.flag, help="same as PROMPT; - is stdin alone")
    prompts.add_argument(
        "--prompts-file",
        type=options.prompts_file,
        metavar="FILE",
        help="a prompt a line, answered as one batch",
    )
    parser.add_argument("--system", type=texts.flag, help="system prompt")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="no chat template; one bos token, also where the prompt begins with one",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut a prompt that is too long at its start"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_sampling(parser)
    options.add_thinking(parser)
    cache_flags.add_cache(parser)


def run(args: argparse.Namespace) -> int:
    """Answer on stdout; thinking, progress and figures go to stderr."""
    if args.raw and args.system:
        raise options.UsageError("--system has no place in a --raw prompt")
    if args.raw and args.chat_template is not None:
        raise options.UsageError("--chat-template has no place in a --raw prompt")
    if args.raw and args.think is not None:
        raise options.UsageError("--think has no place in a --raw prompt: all of it is the answer")
    _part(args)
    prompts = _prompts(args)
    if not prompts:
        raise options.UsageError("the prompt is empty: write it after the model, or pipe it in")
    from app.kernels import compile_rest
    from app.session import open_session

    with open_session(args, raw=args.raw, think=options.think_switch(args)) as session:
        if args.prompts_file:
            code = _answer_all(args, session, prompts)
        else:
            code = _answer_one(args, session, prompts[0])
    if code == 0:
        compile_rest()
    return code


def _answer_one(args: argparse.Namespace, session: "Session", prompt: str) -> int:
    from app.console import error_note, note_loop, show
    from app.interrupt import cancel_on_interrupt
    from app.report import as_json, settings_json, summary

    # Before the next line: Ctrl-C ends what a chat template does at once.
    request = _request(args, session, prompt)
    with cancel_on_interrupt() as cancel:
        events = session.generate(request, cancel)
        thinking = options.shows_thinking(args)
        (answer,) = show(events, echo=not args.json, thinking=thinking)
    if answer.completion is not None:
        note_loop(answer.completion)
    if not args.json or answer.completion is None:
        plan, stats = session.engine.plan, session.engine.stats()
        print(summary(answer.whole(), stats, plan.most_held), file=sys.stderr)
    else:
        cache = {"cache": session.engine.stats().as_dict()}
        print_json(as_json(answer) | cache | settings_json(session.engine))
        if answer.error is not None:
            error_note(answer.error)
    return _code([answer], cancel)


def _answer_all(args: argparse.Namespace, session: "Session", prompts: list[str]) -> int:
    """Answer a batch; a prompt that fails does not keep the others from their answers."""
    from app.console import Answer, show
    from app.interrupt import cancel_on_interrupt
    from app.memory import check_batch
    from app.report import as_json, settings_json

    answers: dict[int, Answer] = {}
    requests: dict[int, Request] = {}
    for index, prompt in enumerate(prompts):
        try:
            request = _request(args, session, prompt)
            session.engine.check(request)
            requests[index] = request
        except EmberError as error:
            answers[index] = Answer(completion=None, error=error)
    batch = list(requests.values())
    if batch and not args.force:
        engine, lengths = session.engine, [len(request.prompt) for request in batch]
        loaded, longest = engine.loaded, args.max_tokens
        if any(request.thinking for request in batch) and session.think is not False:
            longest += args.think_budget
        check_batch(engine.plan, loaded.config, loaded.weight_bytes, lengths, longest)
    with cancel_on_interrupt() as cancel:
        if batch:
            events = session.generate_batch(batch, cancel)
            answers |= zip(requests, show(events, rows=len(batch), echo=False), strict=True)
    in_order = [answers[index] for index in range(len(prompts))]
    if args.json:
        results = [as_json(answer) for answer in in_order]
        print_json({"results": results} | settings_json(session.engine))
    _tell(args, prompts, in_order, cancel)
    return _code(in_order, cancel)


def _tell(
    args: argparse.Namespace, prompts: list[str], answers: "list[Answer]", cancel: "Cancel"
) -> None:
    """Print the answers of a batch, and what kept any of them from its end."""
    from app.console import error_note, note, note_loop, show_thinking

    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        if answer.completion is not None and not args.json:
            if options.shows_thinking(args):
                show_thinking(answer.completion.thinking)
            print(f"> {prompt}\n{answer.completion.text}\n")
        if answer.completion is not None:
            note_loop(answer.completion, of=f"prompt {number}: ")
        if answer.error is not None:
            error_note(f"prompt {number}: {answer.error}")
    if cancel.is_set():
        note("interrupted: answers lack their ends")


def _code(answers: "list[Answer]", cancel: "Cancel") -> int:
    """The exit code."""
    if cancel.is_set():
        return cancel.exit_code
    return 1 if any(answer.error for answer in answers) else 0


def _part(args: argparse.Namespace) -> None:
    """Part words and model; raises UsageError too, where there are two prompts."""
    has_prompt = args.prompt is not None or args.prompts_file is not None
    prompt_words.part(args, has_prompt=has_prompt)
    if args.words and has_prompt:
        flag = "--prompt" if args.prompt is not None else "--prompts-file"
        raise options.UsageError(
            f"got two prompts, {quoted(' '.join(args.words))} and {flag}: give one"
        )


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts_file is not None:
        return list(args.prompts_file)
    words = args.words if args.prompt is None else [args.prompt]
    if args.company is not None and (STDIN in words or not words):
        raise options.UsageError("stdin has no end under mlx.launch: write the prompt as words")
    if STDIN in words or not words:
        at = words.index(STDIN) if words else 0
        parts = [" ".join(words[:at]), _stdin(), " ".join(words[at + 1 :])]
    else:
        parts = [" ".join(words), _stdin() if args.company is None and texts.is_piped() else ""]
    text = "\n\n".join(part for part in parts if part.strip())
    return [text] if text else []


def _stdin() -> str:
    """All of stdin; who seems not to know that it is read is told."""
    from app.console import note

    if sys.stdin.isatty():
        note("type the prompt; Ctrl-D on a line of its own ends it")
    elif texts.is_piped() and not select.select([sys.stdin], [], [], _PATIENCE)[0]:
        note("waiting for the end of stdin, which is a pipe: </dev/null leaves it out")
    # One newline at its end is the shell's, not the prompt's.
    return texts.read_stdin().removesuffix("\n")


def _request(args: argparse.Namespace, session: "Session", prompt: str) -> "Request":
    from app.engine import Request
    from models.text.messages import conversation

    thinking = None
    if args.raw:
        ids = session.engine.loaded.tokenizer.encode(prompt)
    else:
        made = session.prompt(conversation(prompt, system=args.system))
        ids, thinking = made.ids, made.thinking
    return Request(
        prompt=ids,
        max_tokens=args.max_tokens,
        sampling=options.sampling(args),
        stop=tuple(args.stop),
        truncate=args.truncate,
        thinking=thinking,
        think_budget=args.think_budget,
        lookup=args.lookup,
        allow_loops=args.allow_loops,
    )
