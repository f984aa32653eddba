"""Torch's private names that the audits lean on: all of them, each tried when this module is imported.

A private name may go, or come to mean something else, with any version of torch. Each is tried here on an example of
two lines. Where it does not do what is relied on, an inert stand-in takes its place, the audits that need it are not
decided and name torch's version (:func:`lacking`), and the training that is watched goes on.

Use them through this module, ``torch_internals.version_of(grad)``, so that a stand-in is met everywhere. Those that are
asked often are functions of C or torch's own: no call of Python is added.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode


def is_recorded() -> bool:
    """Say whether torch records the code that runs, to compile or to trace it: what is asked of a tensor then would
    stand in the record."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Internal:
    """One private name."""

    alias: str
    "What it is called in this module."
    serves: str
    "What it is used for."
    audits: frozenset[str] | None
    "Ids of the audits that need it; None for all of them, and none where the stand-in does the same by public means."
    stand_in: Any
    "What takes its place where it is missing."


INTERNALS: dict[str, Internal] = {}
"Every private name, as it is found in torch."
MISSING: dict[str, str] = {}
"Those that torch has no more or that do something else, and what came of trying them."


def self_test(find: Callable[[], Any], works: Callable[[Any], bool]) -> tuple[Any, str | None]:
    """Return what `find` finds, and what is wrong with it if it is not there or `works` does not hold of it."""
    try:
        # Whoever imports the audits may do so under no_grad, in inference mode, or with another default device.
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            found = find()
            return found, None if works(found) else "does something else"
    except Exception as error:  # whatever another version of torch raises
        return None, f"{type(error).__name__}: {error}"


def _tried(
    alias: str,
    name: str,
    serves: str,
    find: Callable[[], Any],
    works: Callable[[Any], bool],
    stand_in: Any,
    audits: frozenset[str] | None,
) -> Any:
    """Enter a private name, and return what torch has by it; the stand-in where it fails the test."""
    INTERNALS[name] = Internal(alias, serves, audits, stand_in)
    found, wrong = self_test(find, works)
    if wrong is None:
        return found
    MISSING[name] = wrong
    return stand_in


def lacking(audit: str) -> str | None:
    """Say which private name an audit (by id) lacks in this version of torch; None if it has all that it needs."""
    for name in MISSING:
        needed_by = INTERNALS[name].audits
        if needed_by is None or audit in needed_by:
            return f"torch {torch.__version__} has no {name} as this audit needs it, for {INTERNALS[name].serves}"
    return None


def can_follow() -> bool:
    """Say whether tensors can be followed from network to loss: nothing is judged where they cannot."""
    return all(INTERNALS[name].audits is not None for name in MISSING)


# --- tensors and their gradients ---


def _counts_writes(version: Callable[[Tensor], int]) -> bool:
    tensor = torch.zeros(1)
    before = version(tensor)
    tensor.add_(1)
    return version(tensor) > before


def _has_hook(hooks: Callable[[Tensor], Any]) -> bool:
    tensor = torch.zeros(1, requires_grad=True)
    before = bool(hooks(tensor))
    tensor.register_hook(lambda grad: None)
    return not before and bool(hooks(tensor))


def _has_step_hook(hooks: Callable[[torch.optim.Optimizer], Any]) -> bool:
    # Unpickled: the first optimizer that is made of parameters imports torch's compiler, which takes a second or two.
    optimizer = torch.optim.Optimizer.__new__(torch.optim.SGD)
    torch.optim.Optimizer.__setstate__(optimizer, {"defaults": {}, "param_groups": [], "state": {}})
    before = bool(hooks(optimizer))
    optimizer.register_step_pre_hook(lambda *args: None)
    return not before and bool(hooks(optimizer))


def _is_the_leaf(name: str) -> bool:
    leaf = torch.ones(1, requires_grad=True)
    grad_fn: Any = (leaf + 1).grad_fn
    return getattr(grad_fn.next_functions[0][0], name) is leaf


def _norms_one_by_one(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]


version_of: Callable[[Tensor], int] = _tried(
    "version_of",
    "Tensor._version",
    "seeing that a tensor was written to in place",
    lambda: attrgetter("_version"),
    _counts_writes,
    stand_in=lambda tensor: 0,
    audits=frozenset(("KD104", "KD106", "KD201", "KD202", "KD203", "KD204", "KD205", "KD211", "KD212")),
)
hooks_of: Callable[[Tensor], Any] = _tried(
    "hooks_of",
    "Tensor._backward_hooks",
    "seeing that a hook may change a gradient",
    lambda: attrgetter("_backward_hooks"),
    _has_hook,
    stand_in=lambda tensor: True,
    audits=frozenset(("KD201", "KD202", "KD204", "KD303", "KD305", "KD311", "KD312", "KD313", "KD314", "KD341")),
)
step_hooks_of: Callable[[torch.optim.Optimizer], Any] = _tried(
    "step_hooks_of",
    "Optimizer._optimizer_step_pre_hooks",
    "seeing that a hook may change gradients at the step",
    lambda: attrgetter("_optimizer_step_pre_hooks"),
    _has_step_hook,
    stand_in=lambda optimizer: True,
    audits=frozenset(),
)
foreach_norm: Callable[[list[Tensor]], list[Tensor]] = _tried(
    "foreach_norm",
    "torch._foreach_norm",
    "the norms of many gradients in one call",
    lambda: torch._foreach_norm,
    lambda norm: [float(n) for n in norm([torch.ones(4), torch.zeros(2)])] == [2.0, 0.0],
    stand_in=_norms_one_by_one,
    audits=frozenset(),
)
GRAD_GETTERS: tuple[Any, ...] = _tried(
    "GRAD_GETTERS",
    "Tensor._grad",
    "telling a look at a gradient from a computation",
    lambda: (Tensor.grad, Tensor.grad_fn, Tensor._grad),
    lambda getters: all(hasattr(getter, "__get__") for getter in getters),
    stand_in=(Tensor.grad, Tensor.grad_fn),
    audits=frozenset(),
)
LEAF: str = _tried(
    "LEAF",
    "AccumulateGrad.variable",
    "finding the parameters that a loss gives a gradient to",
    lambda: "variable",
    _is_the_leaf,
    stand_in="variable",
    audits=None,
)


# --- function modes ---


class _Told(TorchFunctionMode):
    """Counts what it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _silences(disable: Callable[[], AbstractContextManager[None]]) -> bool:
    with _Told() as mode:
        torch.zeros(1)
        heard = mode.calls
        with disable():
            torch.zeros(1)
        return heard > 0 and mode.calls == heard


def _is_on_top(at: Callable[[int], Any]) -> bool:
    with _Told() as mode:
        return at(mode_depth() - 1) is mode


def _grows(depth: Callable[[], int]) -> bool:
    before = depth()
    with _Told():
        return depth() == before + 1


DisableTorchFunction: Callable[[], AbstractContextManager[None]] = _tried(
    "DisableTorchFunction",
    "torch._C.DisableTorchFunction",
    "keeping what the audits compute out of what they see",
    lambda: torch._C.DisableTorchFunction,
    _silences,
    stand_in=nullcontext,
    audits=None,
)
mode_depth: Callable[[], int] = _tried(
    "mode_depth",
    "torch._C._len_torch_function_stack",
    "taking the mode down where it is on top",
    lambda: torch._C._len_torch_function_stack,
    _grows,
    stand_in=lambda: 0,
    audits=None,
)
mode_at: Callable[[int], Any] = _tried(
    "mode_at",
    "torch._C._get_function_stack_at",
    "taking the mode down where it is on top",
    lambda: torch._C._get_function_stack_at,
    _is_on_top,
    stand_in=lambda depth: None,
    audits=None,
)
peek_interpreter_stack: Callable[[], Any] = _tried(
    "peek_interpreter_stack",
    "torch._C._functorch.peek_interpreter_stack",
    "leaving alone what is computed under torch.func",
    lambda: torch._C._functorch.peek_interpreter_stack,
    # Under whose vmap the audits may be imported is nobody's business here.
    lambda peek: torch.vmap(lambda x: x + (peek() is None))(torch.zeros(2)).tolist() == [0.0, 0.0],
    stand_in=lambda: None,
    audits=None,
)


# --- modules ---


def _holds(where: Callable[[nn.Module], Mapping[str, Any]], name: str) -> bool:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    module.register_buffer("running_mean", torch.zeros(1))
    return list(where(module)) == [name]


def _sees_hook(hooks: Callable[[nn.Module], Mapping[Any, Any]]) -> bool:
    module = nn.Identity()
    before = len(hooks(module))
    handle = module.register_forward_hook(lambda *_: None)
    return before == 0 and len(hooks(module)) == 1 and handle.id in hooks(module)


def _compiled_names() -> str:
    """The source of torch's compiled module, which takes seconds to import."""
    return (Path(inspect.getfile(torch)).parent / "_dynamo" / "eval_frame.py").read_text(encoding="utf-8")


parameters_of: Callable[[nn.Module], dict[str, nn.Parameter | None]] = _tried(
    "parameters_of",
    "Module._parameters",
    "the parameters that a module holds itself, whatever a subclass says",
    lambda: attrgetter("_parameters"),
    lambda where: _holds(where, "weight"),
    stand_in=lambda module: {},
    audits=frozenset(("KD103", "KD104")),
)
buffers_of: Callable[[nn.Module], dict[str, Tensor | None]] = _tried(
    "buffers_of",
    "Module._buffers",
    "the running statistics that a module holds itself",
    lambda: attrgetter("_buffers"),
    lambda where: _holds(where, "running_mean"),
    stand_in=lambda module: {},
    audits=frozenset(("KD104",)),
)
forward_hooks_of: Callable[[nn.Module], Mapping[int, Any]] = _tried(
    "forward_hooks_of",
    "Module._forward_hooks",
    "seeing that features are taken by a hook",
    lambda: attrgetter("_forward_hooks"),
    _sees_hook,
    stand_in=lambda module: {},
    audits=frozenset(("KD106",)),
)
SUBMODULES: str = _tried(
    "SUBMODULES",
    "Module._modules",
    "the name under which an object of the user's holds a network",
    lambda: "_modules",
    lambda name: isinstance(vars(nn.Sequential(nn.Identity())).get(name), dict),
    stand_in="_modules",
    audits=frozenset(),
)
COMPILED: str = _tried(
    "COMPILED",
    "OptimizedModule._orig_mod",
    "the name of a network that was compiled",
    lambda: "_orig_mod",
    lambda name: f"self.{name}" in _compiled_names(),
    stand_in="_orig_mod",
    audits=frozenset(),
)
BatchNorm: "type[nn.modules.batchnorm._BatchNorm]" = _tried(
    "BatchNorm",
    "nn.modules.batchnorm._BatchNorm",
    "batch norms of whatever dimension",
    lambda: nn.modules.batchnorm._BatchNorm,
    lambda kind: all(issubclass(norm, kind) for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)),
    stand_in=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    audits=frozenset(),
)
InstanceNorm: "type[nn.modules.instancenorm._InstanceNorm]" = _tried(
    "InstanceNorm",
    "nn.modules.instancenorm._InstanceNorm",
    "instance norms of whatever dimension",
    lambda: nn.modules.instancenorm._InstanceNorm,
    lambda kind: all(issubclass(norm, kind) for norm in (nn.InstanceNorm1d, nn.InstanceNorm2d)),
    stand_in=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    audits=frozenset(),
)
Dropout: "type[nn.modules.dropout._DropoutNd]" = _tried(
    "Dropout",
    "nn.modules.dropout._DropoutNd",
    "dropout of whatever kind",
    lambda: nn.modules.dropout._DropoutNd,
    lambda kind: all(issubclass(drop, kind) for drop in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout)),
    stand_in=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    audits=frozenset(),
)


# --- clips, scalers, workers ---


def _starts_ready(states: Callable[[Any], Any]) -> bool:
    state = states(torch.amp.GradScaler("cpu"))[0]
    return state["stage"].name == "READY" and state["found_inf_per_device"] == {}


def _is_called_by_clip_grad_norm(name: str) -> bool:
    called = inspect.unwrap(clip_grad.clip_grad_norm_).__code__.co_names
    return name in called and callable(getattr(clip_grad, name))


INNER_CLIP: str = _tried(
    "INNER_CLIP",
    "torch.nn.utils.clip_grad._clip_grads_with_norm_",
    "seeing a clip however the function was imported",
    lambda: "_clip_grads_with_norm_",
    _is_called_by_clip_grad_norm,
    stand_in="_clip_grads_with_norm_",
    audits=frozenset(("KD201", "KD202", "KD203", "KD204", "KD205")),
)
scaler_states_of: Callable[[Any], Mapping[int, dict[str, Any]]] = _tried(
    "scaler_states_of",
    "GradScaler._per_optimizer_states",
    "knowing whether gradients are unscaled yet, and whether any was infinite",
    lambda: attrgetter("_per_optimizer_states"),
    _starts_ready,
    stand_in=lambda scaler: defaultdict(dict),
    audits=frozenset(("KD203", "KD214")),
)
SCALES_ITSELF: str = _tried(
    "SCALES_ITSELF",
    "Optimizer._step_supports_amp_scaling",
    "knowing the optimizers that a scaler steps even where gradients are infinite",
    lambda: "_step_supports_amp_scaling",
    # Read off its code: the first optimizer of a process imports torch's compiler.
    lambda name: name in torch.optim.SGD.__init__.__code__.co_names,
    stand_in="_step_supports_amp_scaling",
    audits=frozenset(("KD214",)),
)
shut_down_workers: Callable[[Any], None] = _tried(
    "shut_down_workers",
    "_MultiProcessingDataLoaderIter._shutdown_workers",
    "ending a loader's workers at once; collected, they end too",
    lambda: methodcaller("_shutdown_workers"),
    lambda _: callable(torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers),
    stand_in=lambda iterator: None,
    audits=frozenset(),
)
LoaderIterator: type = _tried(
    "LoaderIterator",
    "torch.utils.data.dataloader._BaseDataLoaderIter",
    "seeing the batches that a loader gives; without it views of stored answers are not judged",
    lambda: torch.utils.data.dataloader._BaseDataLoaderIter,
    lambda kind: (
        issubclass(torch.utils.data.dataloader._SingleProcessDataLoaderIter, kind) and "__next__" in vars(kind)
    ),
    stand_in=object,
    audits=frozenset(),
)
store_of_ranks: Callable[[], Any] = _tried(
    "store_of_ranks",
    "torch.distributed.distributed_c10d._get_default_store",
    "reaching the other processes of a training that torchrun did not start",
    lambda: torch.distributed.distributed_c10d._get_default_store,
    callable,
    stand_in=lambda: None,
    audits=frozenset(),
)
