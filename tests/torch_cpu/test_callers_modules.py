"""Whatever module a caller has is unwrapped, worked on, or refused in one line; every public function does the same."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.graph.copying import copy_module
from layerfold.modules import own_state, plain_module

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


class Holder(nn.Module):
    """A network that also holds something."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.net = small()
        vars(self).update(held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Above(nn.Module):
    """A conv before a network that may be wrapped."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 3, 3, padding=1), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(F.relu(self.first(x)))


class Logger:
    """Keeps a lock, as loggers and metrics do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Be called at every pass."""


def with_history() -> nn.Module:
    model = Holder()
    model.cached = [{"weight": model.net[0].weight * 2}]  # type: ignore[assignment]
    model.register_buffer("derived", model.net[0].weight + 1)
    return model


def with_hook() -> nn.Module:
    model = Holder()
    model.net[2].register_forward_hook(Logger().hook)
    return model


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return small()


def normalised() -> nn.Module:
    model = small()
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    model[3] = nn.utils.parametrizations.spectral_norm(model[3])
    return model.eval()


def compiled_in_place() -> nn.Module:
    model = small()
    model.compile()
    return model


WORKS: dict[str, Callable[[], nn.Module]] = {
    "DataParallel": lambda: nn.DataParallel(small()),
    "compiled": lambda: torch.compile(small()),  # type: ignore[return-value]
    "compiled in DataParallel": lambda: nn.DataParallel(torch.compile(small())),  # type: ignore[arg-type]
    "a compiled part": lambda: Above(torch.compile(small())),  # type: ignore[arg-type]
    "a part in DataParallel": lambda: Above(nn.DataParallel(small())),
    "compiled in place": compiled_in_place,
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(small()),
    "a lock": lambda: Holder(lock=threading.Lock()),
    "a generator": lambda: Holder(steps=(step for step in range(3))),
    "an open file": lambda: Holder(file=sys.__stdout__),
    "locks in lists and dicts": lambda: Holder(held=[threading.Lock(), {"a": (threading.RLock(),)}]),
    "a Python module": lambda: Holder(torch=torch),
    "a condition in a logger": lambda: Holder(logger=Logger()),
    "a hook that holds a lock": with_hook,
    "tensors with a history": with_history,
    "parameters of inference mode": made_in_inference_mode,
    "parametrised weights": normalised,
    "training mode": lambda: small().train(),
    "parameters that share": lambda: Above(nn.Sequential(*small())),
}


@pytest.mark.parametrize("name", WORKS)
def test_module_is_worked_on_and_left_as_it_was(name: str) -> None:
    model = WORKS[name]()
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    net = lf.trace_network(model, IMAGES[:1])
    assert len(net.layers) >= 2
    ends = [chain.end for chain in net.chains]
    solution = lf.Solution(act_pos=[end for end in ends if net.has_activation(end)], merge_pos=ends)
    merged = lf.merge_network(lf.build_train_form(model, net, solution).eval())
    assert sum(isinstance(part, nn.Conv2d) for part in merged.modules()) < len(net.layers)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["a part in DataParallel", "a compiled part"])
def test_unwrapped_parts_share_their_parameters_with_the_callers_module(name: str) -> None:
    model = WORKS[name]()
    plain = plain_module(model)
    assert [id(each) for each in plain.parameters()] == [id(each) for each in model.parameters()]
    assert set(plain.state_dict()) == {"first.weight", "first.bias", *(f"inner.{key}" for key in small().state_dict())}
    assert plain_module(plain) is plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_modules_keep_their_dtype_and_are_refused_with_images(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    net = lf.trace_network(model, IMAGES[:1])
    end = net.chains[0].end
    merged = lf.merge_network(lf.build_train_form(model, net, lf.Solution(act_pos=[end], merge_pos=[end])))
    assert {each.dtype for each in merged.parameters()} == {dtype}
    with pytest.raises(lf.UsageError, match=rf"is {str(dtype)[6:]}, and images are float32; give model\.float\(\)"):
        lf.evaluate_network(model, TensorDataset(IMAGES, torch.zeros(8, dtype=torch.int64)))


def nan_weight() -> nn.Module:
    model = small()
    model[3].weight.data[0] = float("nan")
    return model


def infinite_variance() -> nn.Module:
    model = small()
    model[1].running_var[0] = float("inf")
    return model


def changed(change: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> nn.Module:
    model = small()
    model[7].weight = nn.Parameter(change(model[7].weight.detach()), **settings)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (lambda: torch.jit.script(small()), "is TorchScript, whose code cannot be traced; give the torch.nn"),
    "traced": (lambda: torch.jit.trace(small(), IMAGES), "is TorchScript"),
    "a scripted part": (lambda: Above(torch.jit.script(small())), "is TorchScript in 'inner'"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), "'0.weight' has no shape yet"),
    "on meta": (on_meta, "'0.weight' lies on the meta device"),
    "a part on meta": (lambda: Above(on_meta()), "'inner.0.weight' lies on the meta device"),
    "sparse": (lambda: changed(torch.Tensor.to_sparse), "'7.weight' is sparse"),
    "sparse rows": (lambda: changed(torch.Tensor.to_sparse_csr), "'7.weight' is sparse"),
    "int8": (lambda: changed(lambda w: w.to(torch.int8), requires_grad=False), "'7.weight' is int8"),
    "complex": (lambda: changed(lambda w: w.to(torch.complex64)), "'7.weight' is complex64"),
    "float8": (lambda: changed(lambda w: w.to(torch.float8_e4m3fn), requires_grad=False), "is float8_e4m3fn"),
    "quantised": (lambda: torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}), "is quantised in '7'"),
    "NaN": (nan_weight, "'3.weight' holds numbers that are NaN or infinite"),
    "infinite": (infinite_variance, "'1.running_var' holds numbers"),
    "None": (lambda: None, "model is None, not a torch.nn.Module"),
    "a class": (lambda: nn.Conv2d, "model is the class Conv2d, not an object of it; call it"),
    "a state_dict": (lambda: small().state_dict(), "model is a state_dict"),
    "a tuple": (lambda: (small(), 3), "model is a tuple (Sequential, int)"),
    "a function": (lambda: small, "call it if it makes one"),
    "text": (lambda: "timm:resnet18", "model is a str"),
    "exported": (lambda: torch.export.export(small(), (IMAGES,)), "model is an exported program"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_module_that_cannot_be_worked_on_is_one_line(name: str) -> None:
    make, says = REFUSED[name]
    model = make()
    with pytest.raises(lf.UsageError, match=r"^model [^\n]*$") as caught:
        lf.trace_network(model, IMAGES[:1])
    assert says in str(caught.value)


def public_functions_of_modules() -> list[str]:
    functions = {name: getattr(lf, name) for name in lf.__all__ if inspect.isfunction(getattr(lf, name))}
    return [
        name
        for name, function in functions.items()
        if any(
            "nn.Module" in str(each.annotation) or name == "benchmark_networks"
            for each in inspect.signature(function).parameters.values()
        )
    ]


@pytest.mark.parametrize("name", public_functions_of_modules())
def test_every_public_function_of_modules_refuses_alike(name: str) -> None:
    function = getattr(lf, name)
    arguments = {
        key: None for key, each in inspect.signature(function).parameters.items() if each.default is each.empty
    }
    if name == "benchmark_networks":
        given = {"networks": {"a": on_meta()}}
    else:
        parameters = inspect.signature(function).parameters.items()
        module = next(key for key, each in parameters if "nn.Module" in each.annotation)
        forms = {key: fx.symbolic_trace(nn.ReLU()) for key, each in parameters if each.annotation == "fx.GraphModule"}
        # What settings are checked for before the module is looked at.
        fine = {"search_activations": {"keep": 1}, "compress_network": {"fastest": True}}.get(name, {})
        given = {**arguments, **forms, **({"out": "out"} if "out" in arguments else {}), **fine, module: on_meta()}
    with pytest.raises(lf.UsageError, match=r"^\w+(\['a'\])? of class Sequential: '0.weight' lies on the meta device"):
        function(**given)


def test_loaded_model_stands_for_its_module() -> None:
    loaded = lf.load_model("timm:mobilenetv2_035")
    images = torch.rand(1, 3, 64, 64)
    assert lf.trace_network(loaded, images).hash == lf.trace_network(loaded.module, images).hash  # type: ignore[arg-type]


def test_threads_that_overlap_put_the_callers_default_dtype_back() -> None:
    torch.set_default_dtype(torch.float64)
    first, second = own_state(), own_state()
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32, "the second still works"
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_network_that_keeps_a_lock_through_its_forms_is_trained_with_an_average() -> None:
    class Locked(nn.Module):
        """Cannot be traced, so it stays whole in every form."""

        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                return x * 2 if x.sum() > 0 else x

    model = nn.Sequential(small()[:5], Locked(), *small()[5:])
    net = lf.trace_network(model, IMAGES[:1])
    end = net.chains[0].end
    student = lf.build_train_form(model, net, lf.Solution(act_pos=[end], merge_pos=[end]))
    lf.finetune_network(student, images(), teacher=model, steps=1, batch_size=8, ema_decay=0.9, progress=False)
    assert len(net.layers) > sum(isinstance(each, nn.Conv2d) for each in lf.merge_network(student.eval()).modules())


def test_batch_whose_input_would_be_too_large_is_refused_before_it_is_allocated() -> None:
    net = lf.trace_network(small(), torch.rand(1, 3, 64, 64))
    some = TensorDataset(torch.rand(2, 3, 64, 64), torch.arange(2))
    big = lf.ImageData(name="big", num_classes=4, input_shape=(3, 64, 64), train=some, holdout=some, test=some)
    for call in (
        lambda: lf.profile_network(small(), net, batch=60_000),
        lambda: lf.verify_solution(small(), net, lf.Solution(act_pos=[], merge_pos=[2]), batch=60_000),
        lambda: lf.compress_network(small(), big, out="out", options=lf.CompressOptions(speedup=1.1, batch=60_000)),
    ):
        with pytest.raises(lf.UsageError, match=r"^batch=60000: an input of 60000x3x64x64 holds more than 268435456"):
            call()


def test_module_that_refuses_to_be_copied_is_one_line() -> None:
    class Stubborn(Holder):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("never\nme")

    with pytest.raises(lf.UsageError, match=r"^model of class Stubborn cannot be copied \(never me\)"):
        copy_module(Stubborn())


@pytest.fixture
def calm() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def images() -> lf.ImageData:
    labels = torch.arange(8) % 4
    splits = {name: TensorDataset(IMAGES, labels) for name in ("train", "holdout", "test")}
    return lf.ImageData(name="made up", num_classes=4, input_shape=(3, 8, 8), **splits)


def every_step(model: nn.Module) -> nn.Module:
    net = lf.trace_network(model, IMAGES[:1])
    end = net.chains[0].end
    student = lf.build_train_form(model, net, lf.Solution(act_pos=[end], merge_pos=[end]))
    lf.finetune_network(student, images(), teacher=model, steps=1, batch_size=8, progress=False)
    lf.estimate_importance(model, net, images(), method="recalibrate", progress=False)
    merged = lf.merge_network(student.eval())
    lf.evaluate_network(merged, images().test)
    return merged


@pytest.mark.parametrize("state", ["inference_mode", "no_grad", "made in inference_mode", "float64", "meta"])
@pytest.mark.usefixtures("calm")
def test_state_of_torch_is_the_callers_before_and_after_and_ours_between(state: str) -> None:
    if state == "inference_mode":
        with torch.inference_mode():
            merged = every_step(small())
            assert torch.is_inference_mode_enabled()
    elif state == "no_grad":
        with torch.no_grad():
            merged = every_step(small())
            assert not torch.is_grad_enabled()
    elif state == "made in inference_mode":
        merged = every_step(made_in_inference_mode())
    elif state == "float64":
        model = small()
        torch.set_default_dtype(torch.float64)
        merged = every_step(model)
        assert torch.get_default_dtype() == torch.float64
    else:
        model, data = small(), images()
        torch.set_default_device("meta")
        net = lf.trace_network(model, IMAGES[:1])
        merged = lf.merge_network(lf.build_train_form(model, net, lf.Solution(act_pos=[], merge_pos=[2])))
        lf.evaluate_network(merged, data.test)
        assert torch.get_default_device().type == "meta"
    assert {(each.dtype, each.device.type) for each in merged.parameters()} == {(torch.float32, "cpu")}


def test_threads_may_trace_and_run_networks_at_once() -> None:
    deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(30)])
    expected = {"deep": lf.trace_network(deep, IMAGES[:1]).hash, "small": lf.trace_network(small(), IMAGES[:1]).hash}
    failed: list[BaseException] = []

    def work(name: str, model: nn.Module) -> None:
        try:
            for _ in range(3):
                assert lf.trace_network(model, IMAGES[:1]).hash == expected[name]
                with torch.no_grad():
                    assert model(IMAGES).shape[0] == len(IMAGES)
        except BaseException as error:
            failed.append(error)

    models = [("deep", deep), ("small", small()), ("deep", deep), ("small", small())]
    threads = [threading.Thread(target=work, args=each) for each in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
