"""What llama.cpp says of the tiny files, and how far logits are from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

TRUTH: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "architectures_truth.json").read_text(encoding="utf-8")
)["files"]


def furthest(truth: dict[str, Any], logits: np.ndarray) -> float:
    """How far log-probabilities are from a prompt's truth, at most.

    logits: [L, vocabulary] of the prompt's last tokens.
    """
    worst = 0.0
    for best in truth["next_token_top20"]:
        row = logits[best["position"] - truth["prompt_tokens"]].astype(np.float64)
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        worst = max(worst, float(np.abs(logprobs[best["ids"]] - best["logprobs"]).max()))
    return worst
