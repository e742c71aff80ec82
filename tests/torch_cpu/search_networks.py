"""Small random networks and latency tables for the tests of the search."""

from __future__ import annotations

import random

import torch
from torch import nn

import layerfold as lf
from layerfold.tables import Provenance


class Block(nn.Module):
    """One to three convs, each with or without an activation, with or without a residual around them."""

    def __init__(self, rng: random.Random, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(rng.randint(1, 3)):
            layers += [nn.Conv2d(width, width, rng.choice([1, 3]), padding="same"), nn.BatchNorm2d(width)]
            if rng.random() < 0.7:
                layers.append(act(inplace=True))
        self.body = nn.Sequential(*layers)
        self.has_residual, self.act = rng.random() < 0.5, act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.body(x)
        return self.act(value + x) if self.has_residual else value


def random_network(seed: int, *, blocks: int = 3, width: int = 4, classes: int = 2) -> nn.Module:
    """Return a classifier of random blocks in one or two chains; all activations in place, as libraries have them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    act = rng.choice([nn.ReLU, nn.ReLU6, nn.SiLU])
    body: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), act(inplace=True)]
    for index in range(blocks):
        body.append(Block(rng, width, act))
        if index == 1 and rng.random() < 0.5:
            body.append(nn.MaxPool2d(2))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def random_table(net: lf.Network, seed: int, *, fixed_ms: float = 0.3) -> lf.LatencyTable:
    """Return a latency table in which some merges pay and others do not."""
    rng = random.Random(seed)
    entries = [
        lf.LatencyEntry(
            start=segment.start,
            end=segment.end,
            latency_ms=rng.uniform(0.5, 1.5) * segment.num_layers ** rng.choice([0.2, 0.6, 1.1]),
        )
        for segment in net.candidates()
    ]
    chains = tuple((chain.start, chain.end) for chain in net.chains)
    provenance = Provenance(kind="latency", network_hash=net.hash, chains=chains, fixed_ms=fixed_ms, scale=1.1)
    return lf.LatencyTable(entries, provenance=provenance)
