"""Hashes of weights: for every dtype, and the same as in files that were written before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerfold.finetune._checkpoint import _digest as checkpoint_digest
from layerfold.finetune._checkpoint import network_hash
from layerfold.importance import weights_hash
from layerfold.importance.sharing import _digest as shared_digest


def _network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    with torch.no_grad():
        for index, each in enumerate(model.parameters()):
            each.copy_(torch.arange(each.numel()).reshape(each.shape) / 7 + index)
    return model.to(memory_format=torch.channels_last)


def test_hashes_are_those_of_files_on_disk() -> None:
    model = _network()
    assert weights_hash(model) == "aaf56983451f8175"
    assert network_hash(model) == "9500f0cfe11200f9"
    content = {"a": model[0].weight, "b": [1, {"c": torch.tensor(2.5)}]}
    assert checkpoint_digest(content) == "372e5c4d286c3085048da11994921577e6a7215dd70acef74efe74aeaed18413"
    assert shared_digest(model.state_dict()) == "6c3803642325073cd382855b8357f400868027966af4daf39e80f906b5abe8f2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_buffers_of_every_dtype_have_a_hash(dtype: torch.dtype) -> None:
    first, second = _network(), _network()
    for model, value in ((first, 0.0), (second, 1.0)):
        model.register_buffer("table", torch.full((), value).to(dtype))
        model.register_buffer("none", torch.zeros(0, 3).to(dtype))
    assert weights_hash(first) != weights_hash(second)
    assert network_hash(first) != network_hash(second)
    assert shared_digest(first.state_dict()) != shared_digest(second.state_dict())
