"""What was seen of the updates: the clips, the steps of each optimizer, and what they left out."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Where = dict[str, Any]
"File and line, as reports show them."


_IN_A_ROW = 10
"Steps in a row that were taken from which a scale has been found."
_HALVINGS = 16
"Skips that a search needs at most: the scale is halved at each, from 65536."


@dataclass
class ClipCall:
    """One call of a torch clip function."""

    kind: Literal["norm", "value"]
    ids: frozenset[int]
    "Of the parameters it was handed that had a gradient; without those whose gradient grew afterwards."
    bound: float
    where: Where | None
    norms: tuple[Tensor, Tensor] | None = None
    "The norm that the caller clipped by, and the 2-norm of the same gradients, before clipping."
    handed: int = 0
    "Parameters it was handed, with or without a gradient."
    handed_ids: frozenset[int] = frozenset()
    grown: int = 0
    "Of those with a gradient, how many a later backward added to."
    after_step: bool = False
    "Whether the optimizer had stepped and no backward had followed."
    scaled: bool = False
    "Whether the gradients still carried a GradScaler's factor."


@dataclass
class Step:
    """One update by a watched optimizer."""

    number: int
    "Of this optimizer's steps, counted from 1."
    stepped: list[nn.Parameter]
    "The optimizer's parameters that had a gradient. Strong references: ids alone are reused after collection."
    clips: list[ClipCall]
    "Since this optimizer's step before, those that reached any of `stepped`, or nothing at all."
    clipped_elsewhere: bool
    "Whether there were others, on parameters that are not this optimizer's."
    written: frozenset[int] | None
    """Ids of the parameters whose gradient was written to after its accumulation, by anything but a torch clip; a write
    to all of them beside a torch clip is left out, since it is scaling. None: backward was not seen."""
    scaled: bool
    "Whether a GradScaler took part."
    norm: Tensor
    "2-norm over the gradients of `stepped`, as the optimizer got them."
    resolution: float
    "Relative spacing of numbers in the coarsest dtype among the gradients."
    where: Where | None
    stale_grads: list[nn.Parameter] = field(default_factory=list)
    "Those of `stepped` whose gradient still held what the step before had used."
    repeated: bool = False
    "Whether no backward and no write came between this step and the one before."
    backwards: int = 1
    "Since this optimizer's step before."
    hand_scaled: bool = False
    "Whether gradients were written to while they still carried a GradScaler's factor."
    hand_after_step: bool = False
    "Whether gradients were written to, by no zeroing, between the step before and the next backward."
    hand_bound: tuple[float, frozenset[int], float] | None = None
    "The norm after gradients were multiplied by one factor of at most 1, which gradients, and the factor."
    hand_norms: Tensor | None = None
    "2-norm of each gradient of `stepped`, where any was written to and no clip was called."
    hand_factors: dict[int, float] | None = field(default_factory=dict)
    "By id, what gradients that were written to were multiplied by; None if anything else was done to one."
    strays: list[ClipCall] = field(default_factory=list)
    "Clips since this optimizer's step before of parameters that are none of `stepped`."
    distils: bool = False
    "Whether it came after the first distillation backward."
    touched: bool | None = None
    """Whether a gradient was read between the backward and the step, so that a clip by hand may have looked and had
    nothing to do. None: not known, as where a class of somebody's steps and may clip within."""
    thrown: int = 0
    "Backwards at the line of the last one whose gradients were zeroed since the step before, with no step between."
    zeroed_at: Where | None = None
    "Where that was."


@dataclass
class Empty:
    """The steps of one optimizer for which no parameter had a gradient."""

    kind: str
    "The optimizer's class."
    params: list[nn.Parameter]
    "Some of its parameters."
    steps: int = 0
    "In a row, since the distillation began."
    thrown: int = 0
    "Of them, those before which a gradient was zeroed since the last backward."
    where: Where | None = None
    zeroed_at: Where | None = None
    names: list[str] = field(default_factory=list)
    "Of those parameters that are the student's or a projector's."


@dataclass
class Leaf:
    """A parameter that a distillation's backward gave a gradient to."""

    param: nn.Parameter
    name: str
    optimised: bool


@dataclass
class Updates:
    """What the optimizers did, and to which parameters."""

    steps: list[Step] = field(default_factory=list)
    movable: frozenset[int] = frozenset()
    "Ids of the parameters of every optimizer known, but for those that stepped only before the distillation."
    optimizers: list[str] = field(default_factory=list)
    "Classes of the optimizers that stepped."
    leaves: list[Leaf] | None = None
    stale: list[str] | None = None
    "Parameters in an optimizer of the distillation that no living module holds."
    frozen: list[str] = field(default_factory=list)
    "Parameters of the student that its optimizer holds and that are set to get no gradient."
    unheard_heads: list[str] = field(default_factory=list)
    "Optimised layers without a gradient that answer beside a head that has one, with an answer of the same shape."
    passed_by: list[str] = field(default_factory=list)
    "Parameters in it without a gradient whose module is never called, while its other parameters are in the loss."
    cut_off: list[str] = field(default_factory=list)
    "Parameters in it without a gradient that made an answer which was cut off, and which has one."
    hidden: list[tuple[str, str]] = field(default_factory=list)
    """Parameters of the student in an optimizer that answer for the loss within a function with a backward of its own,
    and never had a gradient; and that function's name."""
    ineffective: list[str] | None = None
    "Parameters that got gradients over the whole burn-in and never changed."
    lr_rows: list[tuple[float, ...]] = field(default_factory=list)
    "Learning rates by group at each step of the distillation's first optimizer."
    group_names: list[str] = field(default_factory=list)
    scheduled_groups: int | None = None
    "Parameter groups that a scheduler of torch's sets on that optimizer; None without one."
    empty: dict[int, Empty] = field(default_factory=dict)
    "By the id of an optimizer, its steps without any gradient since the distillation began."
    undone: dict[int, tuple[int, Where | None]] = field(default_factory=dict)
    "By a parameter's id, how often its gradients were zeroed since any step that used them, and where last."
    unstepped: list[Leaf] = field(default_factory=list)
    "Of the leaves, those that an optimizer holds, that no step ever used and that nothing moved."
    scaler_calls: int = 0
    scaler_skips: int = 0
    scaler_search: int = 0
    "Of the skips, those before a scale held: the first time, or ten times in a row, where there were few until then."
    scaler_held: int = 0
    "Steps in a row, up to the last, that the scaler took."
    _settled: bool = False
    idle_projectors: list[str] = field(default_factory=list)
    "Optimised modules that are never called, while others of their list or dictionary project features in each step."

    def scaler_stepped(self, skipped: bool) -> None:
        """Count a call of a gradient scaler's step, and say up to where its skips looked for a scale that holds."""
        self.scaler_calls += 1
        self.scaler_skips += skipped
        self.scaler_held = 0 if skipped else self.scaler_held + 1
        if self.scaler_held == 1 and self.scaler_search == 0 and self.scaler_skips == self.scaler_calls - 1:
            self.scaler_search = self.scaler_skips
        elif self.scaler_held == _IN_A_ROW and not self._settled and self.scaler_skips <= _HALVINGS:
            self._settled, self.scaler_search = True, self.scaler_skips  # the gradients grew while it looked
