"""Show a text's token ids."""

import argparse

from app import options, texts
from app.inert import inert_line
from app.streams import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("text", type=texts.flag, metavar="TEXT", help="the text; - reads stdin")
    parser.add_argument("-m", "--model", default=options.DEFAULT_MODEL, metavar="MODEL")
    options.add_pretokenizer(parser)
    parser.add_argument(
        "--no-special",
        action="store_true",
        help="add no BOS, and take special tokens in the text as plain text",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print one token a line, or {"ids": [...], "tokens": [...]}."""
    from app.console import note
    from app.session import fetch_with_bar
    from models.gguf.file import GGUFFile
    from models.text.tokenizer import Tokenizer

    text = texts.read_stdin() if args.text == "-" else args.text
    with GGUFFile(fetch_with_bar(args.model)) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata, args.pretokenizer)
    for said in file.notes + tokenizer.notes:
        note(said)
    special = not args.no_special
    ids = tokenizer.encode(text, add_special=special, parse_special=special)
    pieces = [tokenizer.piece(token) for token in ids]
    if args.json:
        print_json({"ids": ids, "tokens": pieces})
    else:
        for token, piece in zip(ids, pieces, strict=True):
            print(f"{token:>7}  {inert_line(piece)}")
    return 0
