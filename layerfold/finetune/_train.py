"""Training as a caller asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from layerfold.data import ImageData
from layerfold.errors import UsageError
from layerfold.finetune._layout import stored_channels_last
from layerfold.finetune._log import EpochLog
from layerfold.finetune._memory import memory_errors_named
from layerfold.finetune._modes import modes_kept
from layerfold.finetune._options import FinetuneOptions
from layerfold.finetune._processes import open_accelerator, send_to_all
from layerfold.finetune._report import FinetuneReport
from layerfold.finetune._run import Run
from layerfold.finetune._schedules import ScheduleName
from layerfold.finetune._trainable import check_trainable
from layerfold.graph.fading import fade_to, fading_activations, remove_fading
from layerfold.modules import public_call
from layerfold.progress import progress_bar

_ALWAYS_FINE = 128
"""The default batch, which few images do not fill."""


@public_call
def finetune_network(
    model: nn.Module,
    data: ImageData,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 128,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    warmup: float = 0.1,
    schedule: ScheduleName = "cosine",
    decay_rate: float = 0.1,
    decay_every: float = 0.3,
    milestones: tuple[float, ...] = (0.5, 0.75),
    decay_power: float = 1.0,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    ema_decay: float | None = None,
    distillation_weight: float = 0.5,
    temperature: float = 2.0,
    feature_weight: float = 0.0,
    grad_clip_norm: float | None = 5.0,
    augment: bool | str = True,
    random_erasing: float = 0.0,
    keep: Literal["last", "best"] = "last",
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
    seed: int = 0,
    fade: float = 0.0,
    features: Sequence[tuple[str, str]] = (),
    score_holdout: bool = True,
    keep_other: bool = False,
    checkpoint_path: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    log_path: str | Path | None = None,
    tensorboard_path: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    description: str = "Finetuning",
) -> FinetuneReport:
    """Train a network in place; afterwards it is in eval mode, on the device and in the layout it came in.

    With a teacher the loss is (1 - w) * cross-entropy + w * T^2 * KL(teacher || student), both softened by the
    temperature T (Hinton et al., Distilling the Knowledge in a Neural Network, 2015), plus ``feature_weight`` times the
    distance of feature maps. Without labels there is no cross-entropy: all is learned from the teacher.
    Accelerate places tensors and does mixed precision.

    In processes that torchrun or ``accelerate launch`` started together, each takes its rows of every batch and
    BatchNorm sees all of them: the loss is that of one process. The first one writes files and shows progress.

    Args:
        model: images to logits; the train form of a compressed network, or any other network. Parameters that do not
            require gradients stay as they are; BatchNorm statistics follow the images all the same.
        data: its train split is learned, its holdout scored after every epoch.
        teacher: the original network; left as it is.
        epochs ... seed: see ``FinetuneOptions``.
        fade: share of the steps, 0..1, over which the activations that :func:`add_fading` put into a train form fade to
            nothing. Afterwards they are taken out; with 0 at once.
        features: where ``feature_weight`` is above 0, pairs of nodes of ``model`` and ``teacher``, both traced, whose
            values are compared: :func:`layerfold.merge.segment_ends`.
        score_holdout: False saves the time of scoring (then ``keep`` must be ``last``).
        keep_other: return the best weights beside the last, or the last beside the best
            (``FinetuneReport.other_weights``).
        checkpoint_path: file that holds the state of the run; if it exists the run goes on from it, and ends as it
            would have without the interruption. After one that diverged it also goes on with another learning rate.
        checkpoint_every_s: seconds between two writes of it within an epoch; it is also written after each epoch.
        log_path: CSV file with a row an epoch, written as each ends.
        tensorboard_path: folder for the same in TensorBoard's format.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        progress: show a bar with an ETA on stderr.
        description: the text beside the bar.

    Raises:
        DataError: no train split, neither labels nor a teacher, a label outside the model's classes, or a holdout of
            one class.
        DeviceUnavailableError: torch does not find the device.
        FinetuneError: the loss or what the network answers is not finite (the model then holds the last good weights),
            memory is too small, the checkpoint cannot be written, or another process is not there.
        OptionalDependencyError: an optimizer or log whose package is not installed.
        UsageError: an option outside its range, a network that gives no logits or of which nothing would train, a
            teacher with other outputs, a damaged checkpoint or one of another run, or a port in use.
    """
    options = FinetuneOptions(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        schedule=schedule,
        decay_rate=decay_rate,
        decay_every=decay_every,
        milestones=milestones,
        decay_power=decay_power,
        label_smoothing=label_smoothing,
        mixup=mixup,
        cutmix=cutmix,
        ema_decay=ema_decay,
        distillation_weight=distillation_weight,
        temperature=temperature,
        feature_weight=feature_weight,
        grad_clip_norm=grad_clip_norm,
        augment=augment,
        random_erasing=random_erasing,
        keep=keep,
        mixed_precision=mixed_precision,
        seed=seed,
    )
    _check_fade(model, fade, options, keep_other)
    try:
        report = train_network(
            model,
            data,
            options,
            teacher=teacher,
            features=features,
            score_holdout=score_holdout,
            keep_other=keep_other,
            checkpoint_path=checkpoint_path,
            checkpoint_every_s=checkpoint_every_s,
            log_path=log_path,
            tensorboard_path=tensorboard_path,
            device=device,
            progress=progress,
            description=description,
            before_step=_fading_steps(model, fade) if fade else None,
            settings={"fade": fade} if fade else None,
        )
    finally:
        fade_to(model, 1.0)
    remove_fading(model)
    return report


def _check_fade(model: nn.Module, fade: float, options: FinetuneOptions, keep_other: bool) -> None:
    if not 0 <= fade <= 1:
        raise UsageError(f"fade={fade!r}: must be within 0..1")
    if fade and next(fading_activations(model), None) is None:
        raise UsageError(
            f"fade={fade!r}: no activation fades in this network; add them (add_fading) to the train "
            "form of a solution that removes some, or leave fade out"
        )
    if fade and (options.keep == "best" or keep_other):
        raise UsageError(
            "keep='best': epochs in which activations fade cannot be compared; use keep='last' alone with fade"
        )


def _fading_steps(model: nn.Module, fade: float) -> Callable[[int, int], None]:
    def before_step(step: int, total_steps: int) -> None:
        fade_to(model, min(1.0, step / (fade * total_steps)))

    return before_step


def train_network(
    model: nn.Module,
    data: ImageData,
    options: FinetuneOptions,
    *,
    teacher: nn.Module | None = None,
    features: Sequence[tuple[str, str]] = (),
    before_step: Callable[[int, int], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    score_holdout: bool = True,
    keep_other: bool = False,
    checkpoint_path: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    log_path: str | Path | None = None,
    tensorboard_path: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    description: str = "Training",
) -> FinetuneReport:
    """Train a network in place, as :func:`finetune_network` does, which says what is not said here.

    Args:
        options: how to train.
        before_step: called before each step with the steps done and the steps in all, for what changes on the way.
            It must depend on nothing but these and the model's state, or a resumed run would end otherwise.
        settings: plain values that decide the outcome beside the options; a checkpoint made with others is refused.
    """
    if (options.keep == "best" or keep_other) and not score_holdout:
        raise UsageError("keep='best': needs the holdout's scores; leave score_holdout=True")
    check_trainable(model, keep_frozen=True)  # what is frozen in part was frozen by whoever calls
    if score_holdout:
        data.check_holdout()
    loader = data.loader(
        "train",
        options.batch_size,
        shuffle=True,
        seed=options.seed,
        drop_last=True,
        augment=options.augment,
        random_erasing=options.random_erasing,
    )
    if options.batch_size > max(loader.num_images, _ALWAYS_FINE):
        raise UsageError(
            f"batch_size={options.batch_size}: the train split has {loader.num_images} images; give at most as many"
        )
    rows = min(options.batch_size, loader.num_images)
    if options.is_mixed and rows % 2:
        raise UsageError(f"mixup, cutmix: the train split has only {rows} images; mixing needs an even number")
    with ExitStack() as stack:
        # Steps seed torch's global generator: it is given back as it was.
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(device)))
        accelerator = open_accelerator(device, options.mixed_precision, changes=before_step is not None)
        number, is_main = accelerator.num_processes, accelerator.is_main_process
        if rows < 2 * number:
            raise UsageError(
                f"batch_size={options.batch_size}: {number} processes need at least {2 * number} images a "
                f"step; the train split has {loader.num_images}"
            )
        stack.enter_context(memory_errors_named(options.batch_size, number))
        stack.enter_context(stored_channels_last(model, accelerator.device))
        log = EpochLog(_path(log_path), _path(tensorboard_path)) if is_main else EpochLog(None, None)
        stack.callback(log.close)
        if teacher is not None:
            stack.enter_context(stored_channels_last(teacher, accelerator.device))
            stack.enter_context(modes_kept(teacher))
            teacher.eval()
            send_to_all(teacher, accelerator)
        run = Run(
            model,
            data,
            options,
            teacher=teacher,
            features=features,
            loader=loader,
            accelerator=accelerator,
            path=_path(checkpoint_path),
            log=log,
            before_step=before_step,
            settings=dict(settings or {}),
            score_holdout=score_holdout,
            keep_other=keep_other,
        )
        stack.callback(run.release)
        shown = progress and is_main
        with progress_bar(description, run.total_steps, enabled=shown, done=run.state.step) as bar:
            run.train(bar, checkpoint_every_s)
    return run.report()


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _cuda_devices(device: str) -> list[int]:
    return list(range(torch.cuda.device_count())) if device != "cpu" else []
