"""What a network is scored by on the holdout, and which change of it is an importance."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

ScoresByName = dict[str, float]
"""``val_acc`` and ``agreement`` (percent), ``val_loss`` and ``kl`` (nats); an estimator may know only some."""

_COLUMNS = {
    "accuracy": ("val_acc", 1.0),
    "agreement": ("agreement", 1.0),
    "loss": ("val_loss", -1.0),
    "kl": ("kl", -1.0),
}
NEED_LABELS = ("accuracy", "loss")


def score_logits(logits: Tensor, expected: Tensor, labels: Tensor | None) -> ScoresByName:
    """Score a network's answers.

    Args:
        logits: [images, classes].
        expected: the original's logits.
        labels: [images]; None where there are none: then accuracy and cross-entropy are unknown.

    Returns:
        Accuracy and agreement with the original's answers in percent, the cross-entropy, and the mean divergence
        KL(original || network) in nats.
    """
    answers = logits.argmax(1)
    divergence = F.kl_div(logits.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True)
    by_label = (
        {}
        if labels is None
        else {
            "val_acc": 100.0 * float((answers == labels).double().mean()),
            "val_loss": float(F.cross_entropy(logits, labels)),
        }
    )
    return {
        **by_label,
        "agreement": 100.0 * float((answers == expected.argmax(1)).double().mean()),
        "kl": float(divergence),
    }


def change_of(scores: Mapping[str, float], original: Mapping[str, float]) -> ScoresByName:
    """Return what each score that is known of both has changed by."""
    # Rounded, so that shares of the same few images that are equal stay equal: sums of noise at 1e-15 are no order.
    return {name: round(value - original[name], 9) for name, value in scores.items() if name in original}


def importance_from_change(change: Mapping[str, float], score: str) -> float:
    """Return the importance by one of ``SCORES``: points, or nats negated; higher is better."""
    column, sign = _COLUMNS[score]
    return sign * change[column]


def column_of(score: str) -> str:
    """Return the name in ``ScoresByName`` of what ``score`` is about."""
    return _COLUMNS[score][0]
