"""The rows of each section as tables; all of them are in the JSON, here is what matters."""

from collections.abc import Callable, Sequence
from typing import Any

from app.bench.showing.table import Table
from app.bench.showing.words import megabytes, short, tokens
from tests.metal.check.rows import (
    AttentionRow,
    BandwidthRow,
    CorrectnessRow,
    EncodingRow,
    KernelRow,
    ProductRow,
    TokensRow,
)


def _correctness(rows: Sequence[CorrectnessRow]) -> list[Table]:
    """A line for each kind of case, and one for each case that is wrong."""
    kinds: dict[str, list[CorrectnessRow]] = {}
    for row in rows:
        kinds.setdefault(row.case.partition(":")[0], []).append(row)
    told = [
        (
            kind,
            str(len(mine)),
            str(sum(not row.right for row in mine)),
            short(max((row.error / row.most for row in mine if row.error is not None), default=0)),
        )
        for kind, mine in kinds.items()
    ]
    found = [
        Table(
            title="Correctness: cases against float64",
            columns=("kind", "cases", "wrong", "worst error of what is allowed"),
            rows=told,
        )
    ]
    wrong = [
        (row.case, row.problem or "differs", short(row.error), short(row.most))
        for row in rows
        if not row.right
    ]
    if wrong:
        columns = ("case", "what", "error", "allowed")
        found.append(Table(title="WRONG", columns=columns, rows=wrong, texts=2))
    return found


def _bandwidth(rows: Sequence[BandwidthRow]) -> list[Table]:
    told = [(row.what, megabytes(row.bytes), short(row.gb_s)) for row in rows]
    return [Table(title="Bandwidth that MLX reaches", columns=("", "MB", "GB/s"), rows=told)]


def _kernels(rows: Sequence[KernelRow]) -> list[Table]:
    told = [
        (
            row.shape,
            row.kernel,
            tokens(row.tokens),
            _microseconds(row.seconds),
            megabytes(row.bytes),
            f"{row.share:.0%}",
        )
        for row in rows
    ]
    return [
        Table(
            title="Launches of one layer's attention, each by itself",
            columns=("heads of", "kernel", "tokens", "us", "MB", "of bandwidth"),
            rows=told,
            texts=2,
        )
    ]


def _products(rows: Sequence[ProductRow]) -> list[Table]:
    told = [
        (
            row.matrix,
            row.type,
            str(row.tokens),
            _microseconds(row.mlx_seconds),
            _microseconds(row.seconds),
            f"{row.times:.2f}",
            megabytes(row.bytes),
            f"{row.share:.0%}",
        )
        for row in rows
    ]
    return [
        Table(
            title="Products over a file's blocks",
            columns=(
                *("matrix", "type", "rows of x", "MLX 4 bits, us", "ember, us"),
                *("times", "MB", "of bandwidth"),
            ),
            rows=told,
            texts=2,
        )
    ]


def _attention(rows: Sequence[AttentionRow]) -> list[Table]:
    told = [
        (
            row.shape,
            tokens(row.tokens),
            str(row.new),
            str(row.threadgroups or "own"),
            _microseconds(row.f16_seconds),
            _microseconds(row.seconds),
            f"{row.times:.2f}",
            f"{row.share:.0%}",
        )
        for row in rows
    ]
    return [
        Table(
            title="One layer's attention",
            columns=(
                *("heads of", "tokens", "new", "threadgroups"),
                *("MLX f16, us", "ember, us", "times", "of bandwidth"),
            ),
            rows=told,
        )
    ]


def _encoding(rows: Sequence[EncodingRow]) -> list[Table]:
    told = [
        (
            row.shape,
            row.kv,
            str(row.block),
            _microseconds(row.seconds),
            _microseconds(row.token_seconds),
        )
        for row in rows
    ]
    return [
        Table(
            title="Encoding of one layer",
            columns=("heads of", "kv", "tokens", "us a block", "us a token"),
            rows=told,
            texts=2,
        )
    ]


def _tokens(rows: Sequence[TokensRow]) -> list[Table]:
    told = [
        (
            row.engine,
            row.kv,
            row.setting,
            tokens(row.depth),
            short(row.tokens_s),
            f"{row.times:.2f}",
            megabytes(row.kv_bytes),
        )
        for row in rows
    ]
    return [
        Table(
            title=f"Generated tokens a second, {rows[0].model}",
            columns=("engine", "kv", "", "tokens held", "tokens/s", "of KVCache", "cache MB"),
            rows=told,
            texts=3,
        )
    ]


def _microseconds(seconds: float) -> str:
    return short(seconds * 1e6)


# By the name of the section, which has rows.
OF: dict[str, Callable[[Sequence[Any]], list[Table]]] = {
    "correctness": _correctness,
    "bandwidth": _bandwidth,
    "kernels": _kernels,
    "products": _products,
    "attention": _attention,
    "encoding": _encoding,
    "tokens": _tokens,
}
