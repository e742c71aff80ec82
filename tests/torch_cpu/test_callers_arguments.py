"""Every public function refuses a wrong type for each of its plain arguments, before it does anything."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import layerfold as lf

WRONG: dict[str, tuple[Any, ...]] = {
    "int": (True, "3", 1.5, [], 10**30, np.zeros(2)),
    "float": (True, "1.5", [], float("nan"), 1j, torch.zeros(2)),
    "bool": ("yes", 2, [], np.zeros(2)),
    "str": (3, True, [], b"x", np.zeros(2)),
    "str | Path": (3, True, [], b"x"),
    "Sequence[str]": (3, [3], {"a": 1}),
    "Iterable[str]": (3, [3], {"a": 1}),
}


def stand_in(annotation: str) -> Any:
    """Return something of the class that a required argument is annotated with; it is never used."""
    if "GraphModule" in annotation:
        return fx.symbolic_trace(nn.ReLU())
    if "nn.Module" in annotation:
        return nn.Conv2d(3, 3, 3)
    if "torch.Tensor" in annotation:
        return torch.rand(1, 3, 8, 8)
    if annotation.startswith("Mapping"):
        return {"a": nn.Conv2d(3, 3, 3)}
    if annotation.startswith(("Batches", "Sequence[")):
        return []
    if annotation == "tuple[int, int, int]":
        return (3, 8, 8)
    name = annotation.split(" | ")[0]
    return {"str": "x", "int": 1, "float": 1.0}.get(name) or type(name, (), {})()


def cases() -> list[tuple[str, str]]:
    found = []
    for name in lf.__all__:
        function = getattr(lf, name)
        if inspect.isfunction(function):
            for argument, parameter in inspect.signature(function).parameters.items():
                if str(parameter.annotation).removesuffix(" | None") in WRONG:
                    found.append((name, argument))
    return found


@pytest.mark.parametrize(("name", "argument"), cases(), ids=".".join)
def test_wrong_type_is_one_line_that_begins_with_the_argument(name: str, argument: str) -> None:
    function = getattr(lf, name)
    parameters = inspect.signature(function).parameters
    given = {key: stand_in(each.annotation) for key, each in parameters.items() if each.default is each.empty}
    annotation = str(parameters[argument].annotation)
    nothing = () if annotation.endswith(" | None") else (None,)
    for wrong in (*WRONG[annotation.removesuffix(" | None")], *nothing):
        with pytest.raises(lf.UsageError) as caught:
            function(**{**given, argument: wrong})
        said = str(caught.value)
        assert said.startswith(f"{argument}="), (wrong, said)
        assert "\n" not in said
        assert len(said) < 300


OPTIONS = [lf.CompressOptions, lf.FinetuneOptions, lf.RunOptions, lf.Executor]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: each.__name__)
def test_options_refuse_a_wrong_type_in_every_plain_field(options: Any) -> None:
    given = {"speedup": 1.5} if options is lf.CompressOptions else {}
    for field, parameter in inspect.signature(options).parameters.items():
        for wrong in WRONG.get(str(parameter.annotation).removesuffix(" | None"), ()):
            with pytest.raises(lf.UsageError) as caught:
                options(**{**given, field: wrong})
            assert str(caught.value).startswith(field), (field, wrong, str(caught.value))
