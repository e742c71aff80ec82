"""What module is this: the one place that says which of the caller's modules are worked on, and in which torch state.

Wrappers come off (``DataParallel``, ``torch.compile``, ``AveragedModel``); what cannot be worked on at all is refused
with what to pass instead. Public functions that take modules are marked with :func:`public_call`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from layerfold.arguments import check_size, checked_value, shown
from layerfold.errors import UsageError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_WRAPPED_AS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MUST_BE_FINITE = ("weight", "bias", "running_mean", "running_var")
"""Last names of what no network computes with when it is NaN; masks and tables of others may hold infinity."""
_MADE_BY = {name: "what build_train_form returned, finetuned or not" for name in ("student", "form")}
_DEPTH = threading.local()


def public_call(
    function: Callable[_P, _R], *, check: Callable[[Mapping[str, Any]], object] | None = None
) -> Callable[_P, _R]:
    """Make a public function check its arguments by their annotations, unwrap modules, and run in its own torch state.

    Args:
        function: to be called with what was checked and unwrapped.
        check: of the arguments together, by their names; where ``model`` and ``net`` are among them, the decorator is
            :func:`layerfold.graph.same_model.network_call`, which has one.

    Raises:
        UsageError: from the function: a module that cannot be worked on, or an argument of a wrong type.
    """
    signature = inspect.signature(function)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    if {"model", "net"} <= kinds.keys() and check is None:
        raise TypeError(f"{function.__name__} takes a model and its net: mark it with network_call")
    originals = {"example_input", "out"}  # beside one of these stands the caller's own network, as it was trained

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if getattr(_DEPTH, "value", 0):  # called by another such function, which has checked what the caller gave
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            is_original = name == "model" and bool(originals & kinds.keys())
            bound.arguments[name] = _checked(name, value, str(kinds[name]), is_original=is_original)
        _check_batch(bound.arguments)
        if {"data", "images"} & bound.arguments.keys():
            for name in (name for name, kind in kinds.items() if str(kind).split(" | ")[0] == "nn.Module"):
                _check_float32(name, bound.arguments.get(name), str(kinds[name]))
        with own_state():
            if check is not None:
                check(bound.arguments)
            return function(*bound.args, **bound.kwargs)

    return call


def plain_module(model: object, name: str = "model", *, verb: str = "is", must_be_finite: bool = True) -> nn.Module:
    """Return the module to work on: the same object, or the one in its wrapper.

    Where parts of it are wrapped, it is a new object that shares all else with the caller's, parameters included.

    Args:
        model: of the caller.
        name: of the argument, for the error.
        verb: between the name and what was found there.
        must_be_finite: False for a network that is being trained or merged, where its own functions say more.

    Raises:
        UsageError: no module, or one whose code or weights cannot be worked on: scripted, quantised, lazy, sharded,
            on the meta device, sparse, complex, whole numbers, NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} {verb} {_not_a_module(model, name)}")
    model = _unwrapped(model, {})
    what = f"{name} of class {type(model).__name__}"
    _check_parts(model, what)
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        _check_tensor(value, key, what, is_parameter=isinstance(value, nn.Parameter))
        if must_be_finite and key.endswith(_MUST_BE_FINITE) and not _is_finite(value):
            raise UsageError(
                f"{what}: {key!r} holds numbers that are NaN or infinite; were the weights trained and loaded rightly?"
            )
    return model


def _checked(name: str, value: Any, annotation: str, *, is_original: bool) -> Any:
    kinds = set(annotation.split(" | "))
    is_left_out = value is None and "None" in kinds
    if "nn.Module" in kinds and not is_left_out:
        if type(value).__name__ == "LoadedModel" and "LoadedModel" not in kinds:
            value = value.module
        if isinstance(value, nn.Module) or kinds <= {"nn.Module", "None"}:
            return plain_module(value, name, must_be_finite=is_original)
        if not kinds & {each.__name__ for each in type(value).__mro__}:
            raise UsageError(f"{name} is {_not_a_module(value, name)}")
        return value
    if annotation.startswith("Mapping[str, ") and isinstance(value, Mapping):
        modules = {
            key: plain_module(each, f"{name}[{key!r}]", must_be_finite=False)
            for key, each in value.items()
            if isinstance(each, nn.Module)
        }
        return {**value, **modules}
    if "fx.GraphModule" in kinds and not isinstance(value, nn.Module):
        raise UsageError(f"{name} is {_not_a_module(value, name)}")
    if annotation.startswith(("torch.Tensor | tuple[torch.Tensor", "Inputs")) and not is_left_out:
        return _inputs(name, value)
    return checked_value(name, value, annotation)


def _inputs(name: str, value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(each, torch.Tensor) for each in values):
        got = ", ".join(type(each).__name__ for each in values) or "an empty tuple"
        remedy = "; torch.from_numpy makes one" if any(type(each).__module__ == "numpy" for each in values) else ""
        raise UsageError(f"{name}: expected a tensor [N, C, H, W], or a tuple of tensors, got {got}{remedy}")
    for each in values:
        if each.is_meta or each.layout != torch.strided or each.is_quantized:
            raise UsageError(
                f"{name}: expected plain tensors with values, got one that is "
                f"{'on the meta device' if each.is_meta else 'sparse or quantised'}"
            )
        check_size(f"{name} of shape", tuple(each.shape))
    return value


def inputs_like(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return inputs on the device of a module's weights, those in floating point in their dtype."""
    some = next((each for each in module.parameters() if each.is_floating_point()), None)
    if some is None:
        return inputs
    return tuple(each.to(some) if each.is_floating_point() else each.to(some.device) for each in inputs)


def tensor_bytes(value: torch.Tensor) -> bytes:
    """Return what a tensor holds, for a hash: of every dtype, also of those that NumPy lacks (bfloat16, float8)."""
    plain = value.detach().cpu().contiguous()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    try:
        found: bytes = plain.numpy().tobytes()
    except TypeError:  # a dtype that NumPy lacks
        found = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def _check_float32(name: str, module: object, annotation: str) -> None:
    if not isinstance(module, nn.Module) or "LoadedModel" in annotation:
        return
    for key, value in module.named_parameters():
        if value.dtype != torch.float32:
            raise UsageError(
                f"{name} of class {type(module).__name__}: {key!r} is "
                f"{str(value.dtype).removeprefix('torch.')}, and images are float32; give {name}.float()"
            )


def _check_batch(arguments: Mapping[str, Any]) -> None:
    """Refuse a batch whose input alone would be too large, before anything of it is allocated."""
    shapes = [shape[1:] for shape in getattr(arguments.get("net"), "input_shapes", ())]
    batch = arguments.get("batch", getattr(arguments.get("options"), "batch", None))
    if not shapes and "data" in arguments:
        shapes = [getattr(arguments["data"], "input_shape", ())]
    if isinstance(batch, int):
        for shape in shapes:
            check_size(f"batch={batch}: an input of", (batch, *shape))


class _DefaultDtype:
    """The default dtype, which all threads share: float32 from the first borrower until the last has given it back."""

    def __init__(self) -> None:
        self._lock, self._borrowers, self._callers = threading.Lock(), 0, torch.float32

    def borrow(self) -> None:
        with self._lock:
            if not self._borrowers:
                self._callers = torch.get_default_dtype()
            self._borrowers += 1
            torch.set_default_dtype(torch.float32)

    def give_back(self) -> None:
        with self._lock:
            self._borrowers -= 1
            if not self._borrowers:
                torch.set_default_dtype(self._callers)


_DEFAULT_DTYPE = _DefaultDtype()


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Run with gradients, outside of inference mode, with float32 and the CPU as defaults; the caller's come back.

    The default dtype is the whole process's: a thread of the caller's that makes tensors meanwhile sees float32, too.
    """
    is_grad_enabled = torch.is_grad_enabled()
    _DEPTH.value = getattr(_DEPTH, "value", 0) + 1
    try:
        _DEFAULT_DTYPE.borrow()
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        _DEPTH.value -= 1
        _DEFAULT_DTYPE.give_back()
        torch.set_grad_enabled(is_grad_enabled)


def _unwrapped(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Return a module without wrappers, its own or of its parts; the same object where there are none."""
    if id(module) not in done:
        inner = getattr(module, _WRAPPED_AS.get(type(module).__name__, ""), None)
        if isinstance(inner, nn.Module):
            done[id(module)] = _unwrapped(inner, done)
        else:
            done[id(module)] = module
            children = {
                name: child if child is None else _unwrapped(child, done) for name, child in module._modules.items()
            }
            if any(child is not module._modules[name] for name, child in children.items()):
                plain = done[id(module)] = copy.copy(module)
                plain._modules = children
    return done[id(module)]


def _not_a_module(model: object, name: str) -> str:
    """Return what was given in place of a module, and what to give."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"the class {model.__name__}, not an object of it; call it"
    if isinstance(model, Mapping) and model and all(isinstance(each, torch.Tensor) for each in model.values()):
        return "a state_dict; build the module and load it: module.load_state_dict(...)"
    if isinstance(model, (tuple, list)):
        held = ", ".join(type(each).__name__ for each in model[:4])
        return f"a {type(model).__name__} ({held}), not a torch.nn.Module; give the module alone"
    if type(model).__name__ == "ExportedProgram":
        return "an exported program; give the torch.nn.Module that it was made from"
    if isinstance(getattr(model, "module", None), nn.Module):
        return f"a {type(model).__name__}, not a torch.nn.Module; give its .module"
    if callable(model) and not isinstance(model, type):
        return f"{shown(model)}, not a torch.nn.Module; call it if it makes one"
    given = "None" if model is None else f"a {type(model).__name__}"
    return f"{given}, not a torch.nn.Module; give {_MADE_BY.get(name, 'the network itself')}"


def _check_parts(model: nn.Module, what: str) -> None:
    for path, part in model.named_modules():
        where = f" in {path!r}" if path else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(
                f"{what} is TorchScript{where}, whose code cannot be traced; give the torch.nn.Module "
                "that it was made from, with its weights"
            )
        if type(part).__module__.startswith(_QUANTISED):
            raise UsageError(
                f"{what} is quantised{where} ({type(part).__name__}); give the network in floating point, "
                "and quantise what comes out"
            )
        if type(part).__name__ == "FullyShardedDataParallel":
            raise UsageError(f"{what} is sharded{where}; gather its full state_dict and load it into a plain module")


def _check_tensor(value: torch.Tensor, key: str, what: str, *, is_parameter: bool) -> None:
    if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
        raise UsageError(f"{what}: {key!r} has no shape yet (a lazy module); run it once on an image first")
    if value.is_meta:
        raise UsageError(
            f"{what}: {key!r} lies on the meta device, so it has no values; move the module with "
            "to_empty(device='cpu') and load its weights"
        )
    if value.is_quantized or (is_parameter and not value.dtype.is_floating_point):
        raise UsageError(
            f"{what}: {key!r} is {str(value.dtype).removeprefix('torch.')}; give the network in floating point"
        )
    if value.layout != torch.strided or value.is_nested:
        raise UsageError(
            f"{what}: {key!r} is sparse ({str(value.layout).removeprefix('torch.')}); make it dense with to_dense()"
        )
    if is_parameter and value.dtype not in _FLOATS:
        raise UsageError(
            f"{what}: {key!r} is {str(value.dtype).removeprefix('torch.')}; convert the module with float()"
        )


@torch.no_grad()
def _is_finite(value: torch.Tensor) -> bool:
    if not value.numel():
        return True
    # One pass without a copy: a sum is NaN or infinite if any number is; else it may have overflowed, so look at all.
    return bool(torch.isfinite(value.detach().sum(dtype=torch.float64))) or bool(torch.isfinite(value).all())
