"""How good a network is on labelled images, and how far it agrees with another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from layerfold.data import UNLABELLED, BatchLoader, Share, Split
from layerfold.errors import DataError, UsageError
from layerfold.finetune._answers import describe, remedy_for
from layerfold.finetune._layout import channels_last
from layerfold.finetune._modes import device_of, modes_kept
from layerfold.finetune._processes import sum_over_processes
from layerfold.modules import public_call

Batches = Iterable[tuple[Tensor, Tensor]]
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a network, as ``evaluate_network`` returns them.

    Attributes:
        accuracy_pct: top-1 accuracy, 0..100; None for images without labels.
        loss: mean cross-entropy, nats; None likewise.
        agreement_pct: share of images with the teacher's top-1 class, 0..100; None without a teacher.
        divergence: mean Kullback-Leibler divergence from the teacher's probabilities, nats; None without a teacher.
        num_images: images scored.
    """

    accuracy_pct: float | None
    loss: float | None
    agreement_pct: float | None = None
    divergence: float | None = None
    num_images: int


@public_call
def evaluate_network(
    model: nn.Module,
    images: Batches | Dataset[Any],
    *,
    teacher: nn.Module | Tensor | None = None,
    batch_size: int = _BATCH,
) -> Scores:
    """Score a network in eval mode; its modes are put back afterwards.

    Args:
        model: images [batch, channels, height, width] to logits [batch, classes]; stays where it is.
        images: batches of (images, labels), or a Dataset (a split of ``ImageData``) to take batches from.
        teacher: compare with this network, or with its logits [images, classes], in eval mode, over the same images in
            the same order, which saves running it again. Without labels that is all that is scored.
        batch_size: of the batches taken from a Dataset.

    Raises:
        DataError: there are no images, or a label is outside the model's classes.
        UsageError: the teacher's logits are of another number of images.

    Example:
        >>> scores = lf.evaluate_network(model, data.test, teacher=model)
        >>> scores.num_images, scores.agreement_pct
        (32, 100.0)
    """
    correct = agreeing = total = 0
    loss = divergence = 0.0
    is_labelled = True
    device = device_of(model)
    known = teacher if isinstance(teacher, Tensor) else None
    with modes_kept(model), modes_kept(teacher if isinstance(teacher, nn.Module) else nn.Identity()), torch.no_grad():
        model.eval()
        if isinstance(teacher, nn.Module):
            teacher.eval()
        for batch, labels in _batches(images, batch_size):
            batch, labels = channels_last(batch.to(device)), labels.to(device)
            logits = _logits(model, batch)
            predicted = logits.argmax(1)
            is_labelled = is_labelled and (teacher is None or bool((labels != UNLABELLED).any()))
            if is_labelled:
                check_labels(labels, logits.shape[1], first=total)
                correct += int((predicted == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            if teacher is not None:
                if known is not None:
                    expected = known[total : total + len(labels)].to(device)
                    if len(expected) != len(labels):
                        raise UsageError(f"teacher: holds logits of {len(known)} images, but there are more")
                else:
                    assert isinstance(teacher, nn.Module)
                    expected = _logits(teacher, batch)
                agreeing += int((predicted == expected.argmax(1)).sum())
                divergence += float(
                    F.kl_div(
                        logits.float().log_softmax(1), expected.float().log_softmax(1), reduction="sum", log_target=True
                    )
                )
            total += len(labels)
    if total == 0:
        raise DataError("evaluate_network: there are no images to score")
    if known is not None and len(known) != total:
        raise UsageError(f"teacher: holds logits of {len(known)} images, but there are {total}")
    return Scores(
        accuracy_pct=100 * correct / total if is_labelled else None,
        loss=loss / total if is_labelled else None,
        num_images=total,
        agreement_pct=100 * agreeing / total if teacher is not None else None,
        divergence=divergence / total if teacher is not None else None,
    )


def evaluate_together(model: nn.Module, split: Split, accelerator: Any, *, teacher: nn.Module | None = None) -> Scores:
    """Score a network on a split, the images shared out among all processes; each returns the same scores.

    Args:
        teacher: for images without labels, to compare with; None for images with labels.
    """
    share = Share(accelerator.process_index, accelerator.num_processes)
    if share.number == 1:
        return evaluate_network(model, split, teacher=teacher)
    sums = [0.0, 0.0, 0.0]
    if share.rows(min(_BATCH, len(split))):
        batches = BatchLoader(split, _BATCH).starting_at(0, share)
        found = evaluate_network(model, batches, teacher=teacher)
        means = (found.accuracy_pct, found.loss) if teacher is None else (found.agreement_pct, found.divergence)
        sums = [*((mean or 0.0) * found.num_images for mean in means), found.num_images]
    share_pct, nats, total = sum_over_processes(sums, accelerator)
    share_pct, nats, count = share_pct / total, nats / total, round(total)
    if teacher is None:
        return Scores(accuracy_pct=share_pct, loss=nats, num_images=count)
    return Scores(accuracy_pct=None, loss=None, agreement_pct=share_pct, divergence=nats, num_images=count)


def check_labels(labels: Tensor, num_classes: int, what: str = "image", *, first: int = 0) -> None:
    """Raise a ``DataError`` that names the first label outside 0..num_classes-1.

    Args:
        labels: class of each image.
        num_classes: of the model.
        what: the images are called, before their number.
        first: number of the first one.
    """
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        if labels[row] == UNLABELLED:
            raise DataError(
                f"{what} {first + row}: has no label, and accuracy and cross-entropy need one; compare "
                "with a teacher, or give labelled images"
            )
        raise DataError(
            f"{what} {first + row}: label {int(labels[row])} is outside 0..{num_classes - 1}, "
            "the model's classes; give a model with more outputs (num_classes)"
        )


def _batches(images: Batches | Dataset[Any], batch_size: int) -> Batches:
    if isinstance(images, Split):
        return BatchLoader(images, batch_size)
    if isinstance(images, Dataset):
        return DataLoader(images, batch_size)
    return images


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    logits: Tensor = model(batch)
    remedy = remedy_for(logits, len(batch))
    if remedy is not None:
        raise UsageError(f"model: gives {describe(logits)}; expected logits [images, classes]: {remedy}")
    return logits
