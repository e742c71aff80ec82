"""Both forms of small real networks, for the tests of what other tools do with them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import nn

import layerfold as lf
from tests.bank.architectures import find
from tests.bank.solutions import random_solution
from tests.bank.weights import randomise, randomise_norms

FORMS = ("train", "deploy")


@dataclass(frozen=True, kw_only=True)
class Forms:
    """A network, its train form (in eval mode, with norms of its own) and its deploy form.

    Attributes:
        images: [4, 3, size, size].
    """

    model: nn.Module
    net: lf.Network
    solution: lf.Solution
    train: nn.Module
    deploy: nn.Module
    images: torch.Tensor

    def copy_of(self, form: str) -> nn.Module:
        """Return the form of that name, to be changed at will."""
        return copy.deepcopy(self.train if form == "train" else self.deploy)


def make_forms(name: str = "benchmarks:resnet20", *, size: int = 32, weights_seed: int = 0) -> Forms:
    """Return the forms of a network of the bank for one random solution; the seed changes the weights only."""
    torch.manual_seed(weights_seed)
    model = find(name).make()
    images = torch.randn(4, 3, size, size)
    randomise(model, images)
    net = lf.trace_network(model, images)
    solution = random_solution(net, net.candidates(max_kernel=7, max_growth=3), random.Random(1))
    student = lf.build_train_form(model, net, solution)
    randomise_norms(student, images)
    return Forms(
        model=model, net=net, solution=solution, train=student, deploy=lf.merge_network(student), images=images
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest absolute value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())
