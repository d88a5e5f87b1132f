"""Answer one prompt, or a file of prompts, and end."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import options
from kvcache.errors import EmberError

if TYPE_CHECKING:
    from app.engine import Request
    from app.session import Session


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_model(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("-p", "--prompt", default="-", help="the prompt; - reads stdin (default)")
    prompts.add_argument(
        "--prompts-file", type=Path, metavar="FILE", help="a prompt a line, answered as one batch"
    )
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument(
        "--truncate", action="store_true", help="cut a prompt that is too long at its start"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_sampling(parser)
    options.add_cache(parser)


def run(args: argparse.Namespace) -> int:
    """Answer on stdout; progress and figures go to stderr."""
    if args.raw and args.system:
        return options.usage_error("run", "--system has no place in a --raw prompt")
    prompts = _prompts(args)
    if not prompts:
        return options.usage_error("run", "the prompt is empty: give --prompt TEXT, or stdin text")
    from app.console import show
    from app.interrupt import cancel_on_interrupt
    from app.report import as_json, settings_json, summary
    from app.session import open_session

    with open_session(args, raw=args.raw) as session, cancel_on_interrupt() as cancel:
        requests = [_request(args, session, prompt) for prompt in prompts]
        result: dict[str, Any]
        if args.prompts_file:
            completions = show(session.generate_batch(requests, cancel), echo=False)
            result = {"results": [as_json(completion) for completion in completions]}
        else:
            completions = show(session.generate(requests[0], cancel), echo=not args.json)
            result = as_json(completions[0]) | {"cache": session.engine.stats().as_dict()}
        if args.json:
            print(json.dumps(result | settings_json(session.engine), ensure_ascii=False))
        elif args.prompts_file:
            for prompt, completion in zip(prompts, completions, strict=True):
                print(f"> {prompt}\n{completion.text}\n")
        else:
            print(summary(completions[0], session.engine), file=sys.stderr)
    return cancel.exit_code


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts_file is None:
        # One newline at the end of stdin is the shell's, not the prompt's.
        text = sys.stdin.read().removesuffix("\n") if args.prompt == "-" else args.prompt
        return [text] if text.strip() else []
    try:
        lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmberError(f"cannot read the prompts file {args.prompts_file}: {error}") from error
    return [line for line in lines if line.strip()]


def _request(args: argparse.Namespace, session: "Session", prompt: str) -> "Request":
    from app.engine import Request
    from models.chat_template import conversation

    ids = (
        session.encode_raw(prompt)
        if args.raw
        else session.encode_chat(conversation(prompt, system=args.system))
    )
    return Request(
        prompt=ids,
        max_tokens=args.max_tokens,
        sampling=options.sampling(args),
        stop=tuple(args.stop),
        truncate=args.truncate,
    )
