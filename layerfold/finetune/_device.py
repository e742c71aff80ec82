"""Where networks are trained and scored."""

from __future__ import annotations

import torch

from layerfold.errors import DeviceUnavailableError, UsageError


def check_device(device: str) -> None:
    """Refuse a device that torch does not find, before anything is spent.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        UsageError: no such name.
        DeviceUnavailableError: this machine has none.
    """
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"device={device!r}: must be cpu, cuda or one of several as cuda:1")
    if kind == "cpu":
        return
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(f"device={device!r}: torch finds no CUDA device; use device='cpu'")
    if index and int(index) >= torch.cuda.device_count():
        raise DeviceUnavailableError(f"device={device!r}: torch finds {torch.cuda.device_count()}, numbered from 0")
