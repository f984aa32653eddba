"""What happened between one backward and the next: the calls of modules, the losses, and what they were made of.

A window is what one backward is judged by. Only what reached the root of that backward counts, so a validation or a
probe that ran meanwhile is not taken for training. Raw windows hold tensors and are dropped when their backward has
run; what the checks read is made of them before (:mod:`audits.infer`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.taint import Made
from kdbench.audits.updates import Where

_KEPT = 4
"Windows whose calls are kept while a loss computed in them waits for its backward."
SMALL = 2**22
"Numbers in a tensor up to which a copy is kept for as long as a window lasts."

LABEL_LOSSES = frozenset(
    {
        "cross_entropy",
        "nll_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "multi_margin_loss",
        "ctc_loss",
    }
)
DISTANCES = frozenset(
    {
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "cosine_similarity",
        "cosine_embedding_loss",
        "pairwise_distance",
    }
)
DIFFERENCES = frozenset({"sub", "__sub__", "rsub", "__rsub__"})
SOFTMAXES = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax", "sigmoid", "logsigmoid"})
LOOKUPS = frozenset({"gather", "take_along_dim", "__getitem__", "index_select"})
IGNORED = -100
"What labels have where there is none: torch's cross-entropy leaves it out."
COMPARISONS = frozenset({"eq", "__eq__", "ne", "__ne__"})
"With a number, they make a mask."
MOODY = (torch_internals.BatchNorm, torch_internals.Dropout, torch_internals.InstanceNorm)
"Modules that answer otherwise in training mode."
_LEGACY = {
    "cross_entropy": (3, 5, 6),
    "nll_loss": (3, 5, 6),
    "binary_cross_entropy": (3, 4, 5),
    "binary_cross_entropy_with_logits": (3, 4, 5),
}
"Where size_average, reduce and reduction stand among the arguments, where that is not after input and target."


@dataclass(eq=False)
class ModuleCall:
    """One call of a module."""

    module: nn.Module
    index: int
    parent: int | None
    fed: Made
    training: bool
    grad: bool
    "Whether a gradient could be recorded."
    given: list[Tensor]
    "The floating or integer tensors among its arguments, kept while the window lasts."
    where: Where | None = None
    "File and line of the call, where no other module made it."
    named: dict[str, Tensor] = field(default_factory=dict)
    "Tensors among its arguments by their names, where no other module made the call; kept while the window lasts."
    out: Made = field(default_factory=Made)
    answer: Tensor | None = None
    "A small output that could be logits; its values may be edited in place later."
    value: Tensor | None = None
    "A copy of the answer's values, as they were returned."
    large: Any = None
    "An output that could be logits and is too large to copy, or has four dimensions; weakly, unless nothing called it."
    large_version: int = 0
    "Of that output as it was returned."
    moody: list[str] = field(default_factory=list)
    "Kinds of functional dropout or batch norm in training mode called directly within it."
    shape: tuple[int, ...] | None = None
    "Of its first output."
    outputs: Any = None
    "The first output, weakly."
    version: int = 0
    "Of the first output as it was returned: a write in place raises it."
    has_children: bool = False
    by_hand: bool = False
    "Whether a product with the weights of this module stands for a call of it."
    within: str = ""
    "The function with a backward of its own in whose forward it was called."
    heard: bool = False
    "Whether a backward of an earlier window reached it."

    def release(self) -> None:
        """Let go of what it was given and answered: whoever still knows of the call keeps nothing large alive."""
        self.given, self.named, self.answer, self.value, self.large = [], {}, None, None, None

    @property
    def output(self) -> tuple[Tensor, Tensor] | None:
        """The output that could be logits, and its values as they were returned; None where they are gone or edited."""
        if self.answer is not None and self.value is not None:
            return self.answer, self.value
        kept = self.large if isinstance(self.large, Tensor) or self.large is None else self.large()
        if kept is None or kept.is_inference() or kept.untyped_storage().size() == 0:
            return None
        return (kept, kept.detach()) if torch_internals.version_of(kept) == self.large_version else None


@dataclass(eq=False)
class FunctionCall:
    """One call of a function that matters: a loss, a softmax, or one in which two networks' answers meet."""

    name: str
    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: list[tuple[Any, Made, tuple[int, ...]]]
    "Each tensor argument (None if too large to keep), what it was made of, its shape."
    out: Any
    made: Made
    grad_fn: Any
    requires_grad: bool
    where: Where | None
    custom: bool = False
    "Whether it has a backward of its own."
    itself: bool = False
    "Whether one network's answer meets in it what that network answered to the same batch without a gradient."

    def release(self) -> None:
        """Let go of the tensors and of the graph."""
        self.args, self.kwargs, self.operands, self.out, self.grad_fn = (), {}, [], None, None

    @property
    def reduction(self) -> str:
        """How a loss of torch's sums up, whichever way that was said."""
        average, reduce, by_name = _LEGACY.get(self.name, (2, 3, 4))
        said = self.arg(average, "size_average"), self.arg(reduce, "reduce")
        if said != (None, None):  # torch reads these two first
            return "none" if said[1] is False else "sum" if said[0] is False else "mean"
        return str(self.arg(by_name, "reduction", "mean"))

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument however it was passed."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Compared(NamedTuple):
    """A network's answer that was compared with a number."""

    answer: Tensor
    number: float
    params: int
    "What the answer was made of."
    where: Where | None


class Joined(NamedTuple):
    """Two answers of one network that nobody learns from through them, and that were taken from each other or mixed."""

    name: str
    one: Made
    other: Made
    is_zero: bool
    "Whether they were taken from each other and nothing was left."
    where: Where | None


@dataclass(eq=False)
class RawWindow:
    """All of one window, before its backward runs."""

    number: int
    calls: list[ModuleCall] = field(default_factory=list)
    functions: list[FunctionCall] = field(default_factory=list)
    one_hot: list[Tensor] = field(default_factory=list)
    scales: list[tuple[Made, float]] = field(default_factory=list)
    "Numbers that scalars were multiplied with, and what those scalars were made of."
    picks: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    "Of answers (..., C) from which several classes a row were looked up: the answer, the classes (..., K), the result."
    joined: list[Joined] = field(default_factory=list)
    columns: list[tuple[Made, Tensor]] = field(default_factory=list)
    "Answers of which classes were chosen or put in another order, or of another size: what made them, and the result."
    compared: list[Compared] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    "Rows of whole numbers (B, L) that were compared with the one that labels have where there is none."
    left: int = 0
    "Parameters of answers of which something was made that is not followed: a choice, a look-up, a number of Python's."
    pools: list[tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    "Functional max-pools: their number, that of the module around, kernel, stride, size before and after."
    starts: list[int] = field(default_factory=lambda: [0])
    "Numbers of the first calls of the windows that it holds."
    roots: list[Tensor] = field(default_factory=list)
    root: Made = field(default_factory=Made)
    leaves: list[nn.Parameter] = field(default_factory=list)
    root_scale: float = 1.0
    where: Where | None = None
    retained: bool = False
    "Whether its graph is kept for another backward: a loss of what was answered in it may come later."
    only_retained: bool = False
    "Whether what it holds of earlier windows is held for nothing but a graph that was kept."
    unheard: bool = False
    """Whether a function of the user's lies on the way whose backward was never heard: who gets a gradient is not known
    yet."""

    @property
    def has_losses_left(self) -> bool:
        """Whether a loss was computed in it that its backward does not reach: it may have one of its own later."""
        return any(f.requires_grad and not self.root.calls >> f.index & 1 for f in self.functions)

    @property
    def waits(self) -> bool:
        """Whether another backward may need what it holds."""
        return self.retained or self.has_losses_left

    def drop_before(self, index: int) -> None:
        """Let go of the calls before a number."""
        for kind in ("calls", "functions"):
            for item in (items := getattr(self, kind)):
                if item.index < index:
                    item.release()
            setattr(self, kind, [item for item in items if item.index >= index])

    def release(self) -> None:
        """Let go of all that is large, whoever still holds a part of the window."""
        for call in self.calls:
            call.release()
        for function in self.functions:
            function.release()
        self.one_hot, self.picks, self.columns, self.masks = [], [], [], []


def following(old: RawWindow, number: int, base: int, upcoming: int, keeps: bool) -> tuple[RawWindow, int]:
    """Return the window after one, and the number that its calls are counted from.

    With `keeps`, it takes over what the last ones computed for losses that have not been called backward yet: two
    peers' losses are computed before either's backward; a loss that is only logged waits in vain.
    """
    new = RawWindow(number)
    new.starts = ([*old.starts, upcoming] if keeps else [upcoming])[-_KEPT:]
    new.only_retained = keeps and not old.has_losses_left and (old.only_retained or len(old.starts) == 1)
    gone = new.starts[0] - base
    for call in old.calls:
        call.heard = call.heard or bool(old.root.calls >> call.index & 1)
    for kind in ("calls", "functions"):
        for item in getattr(old, kind):
            item.index -= gone
            if isinstance(item, ModuleCall) and item.parent is not None:
                item.parent = item.parent - gone if item.parent >= gone else None
            if item.index >= 0:
                getattr(new, kind).append(item)
            else:
                item.release()
    if new.calls or new.functions:
        new.one_hot = old.one_hot
        new.scales = [(Made(m.params, m.calls >> gone, new.starts[0]), f) for m, f in old.scales]
        new.pools = [(n - gone, w - gone, *rest) for n, w, *rest in old.pools if n >= gone]  # type: ignore[misc]
    return new, new.starts[0]


def learns(call: ModuleCall) -> bool:
    """Say whether a gradient can go through what a call answered; where that is gone, whether one could be recorded."""
    answer = call.answer
    if answer is None and call.outputs is not None:
        answer = call.outputs()
    return call.grad if answer is None else bool(answer.requires_grad)


def leaves_of(
    nodes: Iterable[Any], limit: int = 200_000, edges: Callable[[Any], Iterable[Any]] | None = None
) -> list[nn.Parameter]:
    """Return the leaf tensors that a backward from these graph nodes gives a gradient to.

    `edges` says along which edges of a node one goes on; along all, where it is left out.
    """
    seen: set[Any] = set()
    todo = [node for node in nodes if node is not None]
    found: dict[int, nn.Parameter] = {}
    while todo and len(seen) < limit:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, torch_internals.LEAF, None)
        if variable is not None:
            found[id(variable)] = variable
        onward = node.next_functions if edges is None else edges(node)
        todo.extend(parent for parent, _ in onward if parent is not None)
    return list(found.values())
