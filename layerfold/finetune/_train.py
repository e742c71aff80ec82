"""Training as a caller asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from layerfold.data import ImageData
from layerfold.errors import UsageError
from layerfold.finetune._layout import stored_channels_last
from layerfold.finetune._log import EpochLog
from layerfold.finetune._memory import memory_errors_named
from layerfold.finetune._modes import modes_kept
from layerfold.finetune._processes import open_accelerator, send_to_all
from layerfold.finetune._report import EpochRow, FinetuneReport, after
from layerfold.finetune._rounding import RoundedTraining, check_rounding, steps_of
from layerfold.finetune._run import Run, TrainingJob
from layerfold.finetune._trainable import check_trainable
from layerfold.graph.fading import fade_to, fading_activations, remove_fading
from layerfold.merge import ACTIVATION_RANGES, merge_network
from layerfold.modules import public_call
from layerfold.options.finetune import FinetuneOptions, RunOptions
from layerfold.progress import progress_bar
from layerfold.settings import takes_settings

_ALWAYS_FINE = 128
"""The default batch, which few images do not fill."""


@takes_settings(options=FinetuneOptions, run=RunOptions)
@public_call
def finetune_network(
    model: nn.Module,
    data: ImageData,
    options: FinetuneOptions | None = None,
    *,
    teacher: nn.Module | None = None,
    features: Sequence[tuple[str, str]] = (),
    fade: float = 0.0,
    run: RunOptions | None = None,
    **settings: Any,
) -> FinetuneReport:
    """Train a network in place; afterwards it is in eval mode, on the device and in the layout it came in.

    With a teacher the loss is (1 - w) * cross-entropy + w * T^2 * KL(teacher || student), both softened by the
    temperature T (Hinton et al., Distilling the Knowledge in a Neural Network, 2015), plus ``feature_weight`` times the
    distance of feature maps. Without labels there is no cross-entropy: all is learned from the teacher.
    Accelerate places tensors and does mixed precision.

    For ``precision='int8'`` the last steps compute as the quantised network will: each kernel, merged ones too, is
    rounded to int8 per output channel, and feature maps to 8 bits within ranges that are learned. These are kept with
    the network, for its quantised ONNX file (``layerfold.qat.quantised_onnx``). BatchNorm statistics no longer move
    then; where no step is in float32 (``int8_share=1``) they must fit already (:func:`recalibrate_batch_norm`).

    In processes that torchrun or ``accelerate launch`` started together, each takes its rows of every batch and
    BatchNorm sees all of them: the loss is that of one process. The first one writes files and shows progress.

    Args:
        model: images to logits; the train form of a compressed network, or any other network (for int8: any traced
            one, also in deploy form). Parameters that do not require gradients stay as they are; BatchNorm statistics
            follow the images all the same.
        data: its train split is learned, its holdout scored after every epoch.
        teacher: the original network; left as it is.
        options, settings: see :class:`FinetuneOptions`; a setting given by name takes the place of that of ``options``.
        features: where ``feature_weight`` is above 0, pairs of nodes of ``model`` and ``teacher``, both traced, whose
            values are compared: :func:`layerfold.merge.segment_ends`.
        fade: share of the steps, 0..1, over which the activations that :func:`add_fading` put into a train form fade to
            nothing. Afterwards they are taken out; with 0 at once.
        run: where it runs, and what it keeps and shows: see :class:`RunOptions`, whose fields may be given by name too.

    Raises:
        DataError: no train split, neither labels nor a teacher, a label outside the model's classes, or a holdout of
            one class.
        DeviceUnavailableError: torch does not find the device.
        FinetuneError: the loss or what the network answers is not finite (the model then holds the last good weights),
            memory is too small, the checkpoint cannot be written, or another process is not there.
        OptionalDependencyError: an optimizer or log whose package is not installed.
        UsageError: an option outside its range, a network that gives no logits or of which nothing would train, a
            teacher with other outputs, a damaged checkpoint or one of another run, or a port in use.

    Example:
        >>> form = lf.build_train_form(model, net, solution)
        >>> report = lf.finetune_network(form, data, teacher=model, epochs=2, batch_size=16, progress=False)
        >>> report.steps, [row.epoch for row in report.history]
        (4, [1, 2])
    """
    options, run = options or FinetuneOptions(), run or RunOptions()
    training = _Finetuning(data=data, options=options, teacher=teacher, features=features, fade=fade, run=run)
    if options.precision != "int8":
        return training.in_float32(model)
    check_rounding(options, run, fade)
    first = training.before_rounding(model)
    return training.rounded(model, first)


@public_call
def finetune_merged(
    student: nn.Module,
    data: ImageData,
    options: FinetuneOptions,
    *,
    teacher: nn.Module | None = None,
    features: Sequence[tuple[str, str]] = (),
    fade: float = 0.0,
    run: RunOptions | None = None,
) -> tuple[fx.GraphModule, FinetuneReport]:
    """Train a train form in float32, merge it, and train the merged network in int8: each merged kernel by itself.

    :func:`finetune_network` with ``precision='int8'`` stays in train form instead, where a merged kernel is trained
    through the layers that it is made of.

    Args:
        student: a train form; afterwards it holds the weights of the steps in float32.
        data, teacher, features, fade: as of :func:`finetune_network`.
        options: with ``precision='int8'``; ``int8_share`` says when it is merged.
        run: where it runs, and what it keeps and shows.

    Returns:
        The merged network, with the ranges of its feature maps, and the report of both trainings.

    Raises:
        What :func:`finetune_network` and :func:`layerfold.merge_network` raise.

    Example:
        >>> from layerfold.finetune import finetune_merged
        >>> form = lf.build_train_form(model, net, solution)
        >>> options = lf.FinetuneOptions(precision="int8", epochs=2, batch_size=16)
        >>> merged, report = finetune_merged(form, data, options, run=lf.RunOptions(progress=False))
        >>> sum(isinstance(part, nn.BatchNorm2d) for part in merged.modules()), report.steps
        (0, 4)
    """
    run = run or RunOptions()
    if options.precision != "int8":
        raise UsageError("precision='float32': the merged network is trained for int8; say precision='int8'")
    check_rounding(options, run, fade)
    training = _Finetuning(data=data, options=options, teacher=teacher, features=features, fade=fade, run=run)
    first = training.before_rounding(student)
    merged = merge_network(student.eval())
    return merged, training.rounded(merged, first)


@dataclass(frozen=True, kw_only=True)
class _Finetuning:
    """One finetuning: all that it is asked but for the network; see :func:`finetune_network`.

    For int8 it is two trainings, in float32 and then rounded, each with a checkpoint of its own.
    """

    data: ImageData
    options: FinetuneOptions
    teacher: nn.Module | None
    features: Sequence[tuple[str, str]]
    fade: float
    run: RunOptions

    def in_float32(self, model: nn.Module) -> FinetuneReport:
        """Train a network in place."""
        fade = self.fade
        _check_fade(model, fade, self.options, self.run)
        getattr(model, "meta", {}).pop(ACTIVATION_RANGES, None)  # of an earlier training: they will not fit
        try:
            report = train_network(
                model,
                self.data,
                self.options,
                replace(self.run, description=self.run.description or "Finetuning"),
                teacher=self.teacher,
                features=self.features,
                before_step=_fading_steps(model, fade) if fade else None,
                settings={"fade": fade} if fade else None,
            )
        finally:
            fade_to(model, 1.0)
        remove_fading(model)
        return report

    def before_rounding(self, model: nn.Module) -> FinetuneReport | None:
        """Do the steps in float32; None where there are none."""
        num_steps, _ = steps_of(self.options, self.data)
        if not num_steps:
            return None
        path = None if self.run.checkpoint_path is None else float_checkpoint(self.run.checkpoint_path)
        options = replace(self.options, precision="float32", keep="last", steps=num_steps)
        return replace(self, options=options, run=replace(self.run, checkpoint_path=path)).in_float32(model)

    def rounded(self, model: nn.Module, first: FinetuneReport | None) -> FinetuneReport:
        """Do the rounded steps; return the report of both trainings."""
        options = self.options
        _, num_rounded = steps_of(options, self.data)
        rounding = RoundedTraining(model, self.data)
        second = train_network(
            rounding.network,
            self.data,
            replace(options, steps=num_rounded, learning_rate=options.highest_learning_rate * options.int8_rate),
            replace(self.run, description=f"{self.run.description or 'Finetuning'} in int8"),
            teacher=self.teacher,
            features=self.features,
            before_step=rounding.before_step,
            earlier=() if first is None else first.history,
        )
        rounding.finish()
        model.eval()
        return replace(second if first is None else after(first, second), options=asdict(options))


def _check_fade(model: nn.Module, fade: float, options: FinetuneOptions, run: RunOptions) -> None:
    if not 0 <= fade <= 1:
        raise UsageError(f"fade={fade!r}: must be within 0..1")
    if fade and next(fading_activations(model), None) is None:
        raise UsageError(
            f"fade={fade!r}: no activation fades in this network; add them (add_fading) to the train "
            "form of a solution that removes some, or leave fade out"
        )
    if fade and (options.keep == "best" or run.keep_other):
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
    run: RunOptions,
    *,
    teacher: nn.Module | None = None,
    features: Sequence[tuple[str, str]] = (),
    before_step: Callable[[int, int], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    earlier: Sequence[EpochRow] = (),
) -> FinetuneReport:
    """Train a network in place, as :func:`finetune_network` does, which says what is not said here.

    Args:
        options: how to train.
        run: where it runs, and what it keeps and shows.
        before_step: called before each step with the steps done and the steps in all, for what changes on the way.
            It must depend on nothing but these and the model's state, or a resumed run would end otherwise.
        settings: plain values that decide the outcome beside the options; a checkpoint made with others is refused.
        earlier: rows of a training that this one goes on from: they stand first in the log.
    """
    if (options.keep == "best" or run.keep_other) and not run.score_holdout:
        raise UsageError("keep='best': needs the holdout's scores; leave score_holdout=True")
    check_trainable(model, keep_frozen=True)  # what is frozen in part was frozen by whoever calls
    if run.score_holdout:
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
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(run.device)))
        accelerator = open_accelerator(run.device, options.mixed_precision, changes=before_step is not None)
        number, is_main = accelerator.num_processes, accelerator.is_main_process
        if rows < 2 * number:
            raise UsageError(
                f"batch_size={options.batch_size}: {number} processes need at least {2 * number} images per "
                f"step; the train split has {loader.num_images}"
            )
        stack.enter_context(memory_errors_named(options.batch_size, number))
        stack.enter_context(stored_channels_last(model, accelerator.device))
        log_path, board_path = (_path(run.log_path), _path(run.tensorboard_path)) if is_main else (None, None)
        log = EpochLog(log_path, board_path, earlier)
        stack.callback(log.close)
        if teacher is not None:
            stack.enter_context(stored_channels_last(teacher, accelerator.device))
            stack.enter_context(modes_kept(teacher))
            teacher.eval()
            send_to_all(teacher, accelerator)
        job = TrainingJob(
            model=model,
            data=data,
            options=options,
            run=run,
            teacher=teacher,
            features=features,
            before_step=before_step,
            settings=settings or {},
        )
        training = Run(job, loader, accelerator, log)
        stack.callback(training.release)
        bar_of = progress_bar(
            run.description or "Training",
            training.total_steps,
            enabled=run.progress and is_main,
            done=training.state.step,
        )
        with bar_of as bar:
            training.train(bar)
    return training.report()


def float_checkpoint(path: str | Path) -> Path:
    """Return where the steps in float32 of a training for int8 keep their state, beside that of the rounded ones."""
    return Path(f"{path}.float32")


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _cuda_devices(device: str) -> list[int]:
    return list(range(torch.cuda.device_count())) if device != "cpu" else []
