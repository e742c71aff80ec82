"""Several processes that train one network together: who they are, what they agree on, how they end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from layerfold.errors import FinetuneError, LayerfoldError, UsageError
from layerfold.finetune._device import check_device

# As Accelerate reads them: set by torchrun and `accelerate launch`, or by mpirun.
_RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_FAILURES = "layerfold_failures"


def is_main_process() -> bool:
    """Say whether this process is the first of those launched together, or alone: it writes and prints for all."""
    return next((int(os.environ[name]) for name in _RANK_NAMES if name in os.environ), 0) == 0


def open_accelerator(device: str, mixed_precision: str, *, changes: bool) -> Any:
    """Return Accelerate's Accelerator, which has joined the processes launched with this one, if any.

    Args:
        device: ``cpu``, ``cuda`` or, in a process that is alone, one device as ``cuda:1``.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        changes: whether the network may leave out parameters in some steps.

    Raises:
        DeviceUnavailableError: torch finds no such device.
        UsageError: one device for several processes, a port in use, or ``fp16`` on a CPU.
        FinetuneError: the other processes could not be reached.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    # Accelerate keeps one state per process and refuses another precision or device; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    check_device(device)
    if device.startswith("cuda:"):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(f"device={device!r}: several processes take a device each; use device='cuda'")
        torch.cuda.set_device(device)
    if device == "cpu" and mixed_precision == "fp16":  # Accelerate would go on in float32 and not say so
        raise UsageError("mixed_precision='fp16': needs a GPU; use 'bf16' or 'no' with device='cpu'")
    handler = DistributedDataParallelKwargs(find_unused_parameters=changes)
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[handler])
    except dist.DistError as error:
        raise _not_joined(error) from error


def _not_joined(error: Exception) -> LayerfoldError:
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
    if "EADDRINUSE" in str(error):
        return UsageError(
            f"MASTER_PORT={port}: the port is in use on this machine; name a free one "
            "(accelerate launch --main_process_port PORT)"
        )
    reason = str(error).splitlines()[0]
    return FinetuneError(
        f"the processes at {address}:{port} could not be reached ({reason}); start all of them, with "
        "the same address and port"
    )


def sum_over_processes(values: Sequence[float], accelerator: Any) -> list[float]:
    """Return the sum of each value over all processes, in each of them."""
    if accelerator.num_processes == 1:
        return list(values)
    found = torch.tensor(list(values), dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(found)
    total: list[float] = found.tolist()
    return total


def send_to_all(module: nn.Module, accelerator: Any) -> None:
    """Give every process the main one's weights and buffers, in place."""
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            sent = tensor.contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


@contextmanager
def ending_together() -> Iterator[None]:
    """End the processes launched with this one together, and have one of them say why.

    Of processes that fail, the first says its error; in the others the error is marked as ``is_said``. One that waits
    for a process that has ended raises a ``FinetuneError``. A process that is alone is not concerned.
    """
    try:
        yield
    except LayerfoldError as error:
        error.is_said = not _is_first_to_fail()
        raise
    except Exception as error:
        if not (isinstance(error, RuntimeError) and _is_of_a_peer(error)):
            error.is_said = not _is_first_to_fail()  # type: ignore[attr-defined]  # the last resort asks for it
            raise
        ended = FinetuneError(
            "another process of this run ended before its time; run the same command again to go on "
            "from the last checkpoint"
        )
        ended.is_said = not _is_first_to_fail()
        raise ended from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_first_to_fail() -> bool:
    if not dist.is_initialized():
        return is_main_process()  # before the processes met, each finds the same
    try:
        return int(dist.distributed_c10d._get_default_store().add(_FAILURES, 1)) == 1
    except RuntimeError:
        return False  # the process that held the store has said its error, and ended


def _is_of_a_peer(error: RuntimeError) -> bool:
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))
