"""What was declared of a training and what was seen of it: the only things that a check may read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from kdbench.audits.hits import Hits
from kdbench.audits.lost import Asked, Blank, Collapsed, Echoed, Frames, Remade, Repeated, Standing, Unheard
from kdbench.audits.updates import Updates, Where

_UPDATES = 3
"Updates of a teacher by hand, in a row, from which it is taken to be an average on purpose."


@dataclass(frozen=True)
class Clip:
    """Declared intent: gradients are clipped to `max_norm`, over all parameters at once or group by group."""

    max_norm: float
    scope: Literal["global", "per_group"] = "global"


@dataclass(frozen=True)
class Spatial:
    """One call of a convolution or pooling module."""

    name: str
    kind: Literal["conv", "pool"]
    kernel: int
    stride: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    where: Where | None = None
    "File and line of the call of the network, or of the layer."


@dataclass(frozen=True)
class Provenance:
    """How much of the teacher equalled the declared checkpoint when the watch began."""

    equal: int
    "Numbers of parameters and buffers that are bitwise those of the checkpoint."
    total: int
    differing: list[str]
    "Names of the teacher's tensors that are not."
    unexpected: list[str]
    "Names of the checkpoint's tensors that the teacher has no place for."
    aliases: list[str]
    "Names of the declared tensors that are the teacher's own, in one memory: they prove nothing."


@dataclass(frozen=True)
class KD:
    """Declared intent: how the distillation term is meant to be softened and weighed; None where nothing is said."""

    temperature: float | None = None
    alpha: float | None = None
    "Weight of the distillation term where the label term has 1 - alpha."
    kd_weight: float | None = None
    "Weight of the distillation term by itself."
    share: tuple[float, float] | None = None
    "Range of the distillation term's share of the gradient at the student's logits."
    form: Literal["decoupled", "own"] | None = None
    """Of the soft term, where it is not T^2 KL(teacher || student): the target class and the others apart (DKD), or a
    form of one's own, which no audit is asked to know."""


@dataclass
class Term:
    """A loss between the student and something that is no label, in one window."""

    kind: Literal["soft", "feature"]
    name: str
    "Of the function in which the two met."
    where: Where | None
    reaches_student: bool
    student_ran_detached: bool
    "Whether the student's operand was cut from its graph."
    projectors_missed: list[str]
    "Projectors whose answer went in and that get no gradient from it."
    shapes: list[tuple[int, ...]]
    reduction: str | None = None
    against_itself: bool = False
    own_answer: bool = False
    "Whether both sides of a divergence are made of the student alone and hold the same numbers."
    projector_alone: bool = False
    "Whether a student's answer went in through a projector, which gets a gradient, and the student none."
    of_teacher_alone: bool = False
    "Whether both sides are one answer of the teacher's."
    target_grad: bool = False
    target_sum: float | None = None
    "Of the first row of a soft target that should sum to 1."
    target_least: float | None = None
    target_most: float | None = None
    "The least and the largest number of a target."
    input_sum: float | None = None
    "Of exp(input) over the first row where log-probabilities are due."
    weight: float | None = None
    "Gradient of the root at its output, where that is one number."
    permutation: bool = False
    "Whether the teacher's rows met the student's in another order."
    swapped: bool = False
    "Whether the student stands in the target's place."
    log_target: bool = False
    apart: bool = False
    "Whether the loss falls where student and teacher go apart."
    still: bool = False
    "Whether it is heard by the loss, and does not move with the student's answer."
    whole_rows: bool = True
    "Whether its operands hold the rows of the batch as they are, so that their order is that of the batch."
    anew: bool = False
    "Whether it is a number that was cut from its graph and asks for a gradient anew."
    weighs_words: bool = False
    "Whether it is a difference of log-probabilities of words, cut from the graph, by which words are weighed."
    policy: float | None = None
    """Of a difference of log-probabilities that weighs sampled words: the cosine of the step with what it should be, 1
    where each word is made likelier by how much likelier the teacher finds it."""
    unsigned: bool = False
    "Whether it holds absolute values of margins, of the student's scores and of the teacher's, against each other."
    beyond: bool = False
    "Whether probabilities of the student's are held against numbers of which some are negative."
    across: int | None = None
    "The dimension over which probabilities sum to one where it is not the classes'."
    over_others: tuple[int, int] | None = None
    "Those over which a divergence's input and its target sum to one, where each has another one."
    entropy: bool = False
    "Whether it is the teacher's probabilities times the student's log-probabilities, over what is no class."
    lowers_all: bool = False
    "Whether it lowers each of the student's log-probabilities by one number, whatever the teacher's is."
    of_one: int | None = None
    "The dimension over which a softmax of the student's answer runs that holds one number."
    contrast: float | None = None
    "Of scores among others: what the others' are multiplied by, relative to the positive's; 1 where that is right."
    target_scale: list[str] = field(default_factory=list)
    "Single numbers that the student learns and that the teacher's side is scaled by, with their gradient."


@dataclass(frozen=True)
class MissedHook:
    """A hook that sees nothing."""

    network: str
    where: Where | None
    "Of the search for its module, or of the hook."
    module: str | None = None
    "The hooked module that never answers; None where no module had the name that was looked for."


@dataclass
class Inputs:
    """How what the student was shown compares with what the teacher was shown."""

    relation: Literal[
        "same",
        "permuted",
        "flipped",
        "affine",
        "view",
        "differ",
        "shapes",
        "untrained",
        "crossed",
        "vocabulary",
        "context",
        "lacking",
    ]
    """How the teacher's is to the student's; a view: one is made of the other, as a noisy or masked copy is. crossed:
    an input of the teacher's that the student is not shown, but another in its place. vocabulary: one text for both,
    though they know other words. context: one text, of which their masks leave out other words."""
    detail: str = ""
    permutation: list[int] | None = None
    traced: bool = True
    "Whether it was seen what either was made of: the first batch may be older than the observation."


@dataclass(frozen=True)
class BlindMask:
    """A comparison of a network's answer with the number that marks places without a label, which no answer is."""

    whose: str
    "student or teacher."
    number: float
    places: int
    "Without a label in the batch at hand."
    where: Where | None


@dataclass(frozen=True)
class EmptyPlaces:
    """Places of sequences that hold zeros alone, and that the losses without a teacher leave out."""

    places: int
    distilled: int
    "Those of them that get a gradient of a term with the teacher."
    where: Where | None
    "Of that term."


@dataclass
class Sight:
    """One backward of a distillation, as seen from the outside; each observer fills in its part."""

    number: int
    where: Where | None
    student: str = ""
    teacher: str = ""
    teacher_where: Where | None = None
    "File and line of the teacher's call."
    student_where: Where | None = None
    teacher_training: list[str] = field(default_factory=list)
    "Modules of the teacher that answered in training mode and answer otherwise in it."
    teacher_in_training: bool = False
    "Whether the teacher answered in training mode, be it of effect or not."
    teacher_leaves: list[str] = field(default_factory=list)
    "The teacher's parameters that get a gradient from this backward, but for those that the student's goes through."
    teacher_grad: bool = False
    "Whether the teacher's answer carried a gradient."
    teacher_through: str = ""
    "A module that the student's side trains, and that the teacher's answer went through, cut from its graph."
    student_eval: bool = False
    student_is_moody: bool = False
    "Whether the student has modules that answer otherwise in training mode."
    student_frozen: bool = False
    inputs: Inputs | None = None
    repeated: Repeated | None = None
    "Answers of the teacher to one input that were taken for several."
    uncrossed: int = 0
    "Views of the batch that both are shown, where no label teaches and answers meet within each view alone."
    reindexed: bool = False
    "Whether the teacher's rows were read by an index that moves them before they met the student's."
    terms: list[Term] = field(default_factory=list)
    explanations: list[Any] = field(default_factory=list)
    cached: bool = False
    cached_rows: tuple[int, int] | None = None
    "Stored answers that some network was seen to give, and those among them that it gave to another sample."
    blank_rows: tuple[int, int] | None = None
    "Stored answers that tell no class from another, though the network was seen to say more; and rows in all."
    cached_views: tuple[int, int] | None = None
    """Rows that are taught by what a network said of inputs which the student is not shown, and of how many; the inputs
    of both are of one data set."""
    idle: bool = False
    self_taught: bool = False
    own_target: bool = False
    "Whether a divergence or distance in the loss has nothing but the student's answer on both sides."
    probabilities: str = ""
    "Whose answers (student's, teacher's) are probabilities already, where a softmax or sigmoid is taken of them."
    squashed_by: str = "softmax"
    "Which of the two."
    same_again: tuple[int, Where] | None = None
    "How often one line compares one pair of answers, and that line."
    overwritten: tuple[str, str] | None = None
    "A module with a hook, and the one that overwrites in place what the hook was handed."
    depths: dict[tuple[tuple[int, int], tuple[int, int]], Where | None] = field(default_factory=dict)
    """Features that are compared, by how many blocks they were taken behind, and of how many, the student's and the
    teacher's; and where."""
    blind_mask: BlindMask | None = None
    empty_places: EmptyPlaces | None = None
    frames: Frames | None = None
    "Frames beyond the lengths that CTC or the student is given, and those that get a gradient of the student's answer."
    other_weights: bool = False
    "Whether the student's network gave the same input another answer without a gradient, though nothing in it draws."
    asked_twice: bool = False
    "Whether the student was asked the same batch again without a gradient, for a target."
    micro: int = 1
    "Backwards to a step."
    tokens: list[Any] = field(default_factory=list)
    "Of a language model, what its rows of tokens get (infer/tokens.py)."
    token_features: list[Any] = field(default_factory=list)
    "Of a language model, the distances of hidden states by token."
    step: int = 0
    "Optimizer steps since the distillation began, before this backward."
    unanchored: bool = False
    "Whether a network whose base is frozen learns from its own answer alone, with no label beside it."
    one_row: int | None = None
    "Rows that the student is shown where all of them are one row, though what teaches them differs."


@dataclass
class Loaded:
    """How a teacher came to its weights, where nothing was declared."""

    covered: int
    "Numbers that came from a file, a load, or an optimizer."
    total: int
    missing: list[str]
    aliases: list[str]
    changed: list[str]
    "Tensors that held something else at the first distillation step than right after the load."
    trained: bool
    route: str
    same_as_student: bool = False
    "Whether it was loaded from the student's own start, which nothing had trained."
    same_start: bool = False
    "Whether it held, number by number, what the student did."
    began_as_one: bool = False
    """Whether it held the same, and gave the same answer to the batch, in the backward before the first that could be
    read, where that one met a function of the user's for the first time."""
    student_remade: bool = False
    "Whether the student was changed since by more than its optimizer, as where it is pruned step by step."
    made_from: str = ""
    "The name that a library such as Transformers made the teacher from, by routes of its own."
    where: Where | None = None


@dataclass
class Change:
    """Whether the teacher stayed what it was at the first distillation step."""

    params: list[str]
    buffers: list[str]
    by_optimizer: bool
    has_own_label_loss: bool
    average_rate: float | None
    "q where new = old + q (student - old) for all parameters: an average that follows the student."
    silent: list[str] = field(default_factory=list)
    "Running statistics that stood still while those of the same name in the student moved."
    rates: list[float] = field(default_factory=list)
    "That share q, update by update."
    updates: int = 0
    "How often, between two backwards in a row, its parameters were written to, and by no optimizer."
    unstepped: int = 0
    "Of these updates, those between which the student did not move."
    astray: int = 0
    "Of these updates, those that led elsewhere than to the student."
    still: list[str] = field(default_factory=list)
    "Its parameters that such updates leave out although the student's moved."
    moved_share: float | None = None
    "Of its numbers whose twins in the student moved, the part that moved in these updates."
    dtype: str = ""
    "Of its parameters."
    forgotten: bool = False
    """Whether it has the student's parameters one by one, some as the student began with them, was neither loaded nor
    trained, stands still, and no label is in sight: an average that nobody takes."""

    copy_beside: str = ""
    """A teacher that stands still, holds what the student began with, as another one does, and is shown what that one
    makes: an average that nobody takes."""

    @property
    def follows(self) -> bool:
        """Whether it is an average of the student, or is meant to be one: somebody writes to it step by step."""
        return self.average_rate is not None or self.updates >= _UPDATES or self.forgotten


@dataclass(frozen=True)
class Declaration:
    """What was declared of the training; None or False where nothing was said."""

    student: nn.Module | None = None
    teacher: nn.Module | None = None
    clip: Clip | None = None
    kd: KD = field(default_factory=KD)
    same_input: bool = False
    "Whether student and teacher are shown the same batch."
    at: Where | None = None


@dataclass
class Losses:
    """What the backwards showed: the distillation's, one by one, and whether there was one."""

    sights: list[Sight] = field(default_factory=list)
    backwards: int = 0
    "Of whatever training."
    windows_seen: int = 0
    "Those of them that were looked at."
    idle_windows: int = 0
    "Backwards before which a second network answered the student's batch and reached no loss, while none did."
    lost_windows: int = 0
    "Such backwards since the distillation was last seen."
    idle_name: str = ""
    idle_where: Where | None = None
    functions: list[str] = field(default_factory=list)
    "Names of torch's losses that reached a backward."
    missed_hooks: list[MissedHook] = field(default_factory=list)
    unheard: list[Unheard] = field(default_factory=list)
    remade: Remade | None = None
    blanks: list[Blank] = field(default_factory=list)
    collapsed: Collapsed | None = None
    echoed: Echoed | None = None
    standing: Standing | None = None
    asked: Asked | None = None
    checked: list[tuple[str, str, tuple[int, int]]] = field(default_factory=list)
    "Loss functions that :func:`kdbench.check_soft_loss` found right: name, file, first and last line."
    eval_steps: list[int] = field(default_factory=list)
    "Steps before which every forward of the student with a gradient was in evaluation mode."
    eval_where: Where | None = None


@dataclass
class Teacher:
    """Where the teacher's weights come from, whether they stay, and whether its answers are right."""

    provenance: Provenance | None = None
    loaded: Loaded | None = None
    change: Change | None = None
    stepped: list[str] | None = None
    "Its parameters that an optimizer stepped in the distillation."
    shared: tuple[str, list[str]] | None = None
    "A network that teaches, and those of its parameters that the student trains as its own."
    moving_base: tuple[str, list[str]] | None = None
    "A network that teaches with its adapters off, and those of its parameters below them that are trained."
    hits: Hits | None = None
    by_place: Hits | None = None
    "The same over the places of sequences, each with a label of its own; none of them is a word."
    labels_shown: bool = False
    student_width: int | None = None
    "Columns of the student's logits, beside which the teacher's classes are held."


@dataclass(frozen=True)
class Saved:
    """A file that was written after the distillation began."""

    student: float
    "Part of the student's numbers, as they were then, that are in it."
    teacher: float
    where: Where | None
    others: float = 0.0
    "Part of its tensors that have the shape of one of the student's, and numbers of neither network."


@dataclass
class Kept:
    """What was saved of the distillation, and loaded back; and who was asked when it was over."""

    saves: list[Saved] = field(default_factory=list)
    own: list[Where | None] = field(default_factory=list)
    "Loads that gave the student the numbers that it held already."
    nothing: list[tuple[str, str, Where | None]] = field(default_factory=list)
    "Loads that were not strict and found no name: the module's class, the first name that was given, the place."
    asked: dict[str, Where | None] = field(default_factory=dict)
    """Who answered since the student's last step, the latest last: student, teacher, start (a copy that is the student
    as the distillation found it) or other, and where."""
    tested: bool = False
    "Whether the student answered without a gradient since the distillation began."
    whole: bool = False
    "Whether the script was seen to its own end."


@dataclass
class Data:
    """What the networks were shown."""

    spatial: dict[str, list[Spatial]] = field(default_factory=dict)
    "By role, the first three calls of convolution or pooling modules."
    split_overlap: tuple[int, int, str, bool] | None = None
    "Samples in evaluation, those of them trained on too, how it was seen, and whether it is sure."
    split_where: Where | None = None
    "Where they were evaluated."
    kept: Kept = field(default_factory=Kept)


@dataclass
class Trace:
    """A training as the audits saw it."""

    declared: Declaration = field(default_factory=Declaration)
    names: Mapping[int, str] = field(default_factory=dict)
    "Of each known parameter, by id."
    script: bool = False
    "Whether nothing was declared by code: roles were read off what was seen."
    roles: dict[str, list[str]] = field(default_factory=dict)
    "Names by role, as reports show them."
    peers: bool = False
    "Whether student and teacher teach each other, or the teacher learns from labels beside it."
    networks: dict[str, str] = field(default_factory=dict)
    "Networks that answered data, and whether they could learn from it."
    updates: Updates = field(default_factory=Updates)
    losses: Losses = field(default_factory=Losses)
    teacher: Teacher = field(default_factory=Teacher)
    data: Data = field(default_factory=Data)
    broken: str | None = None
    "What went wrong in watching itself; from then on nothing was seen."
    compiled: bool = False
    "Whether something is compiled: what it computes is not seen."
    not_found: dict[str, str] = field(default_factory=dict)
    "Names that were declared, by role, under which no network was found."
    names_there: list[str] = field(default_factory=list)
    "Names of networks that there are, where a declared one was not found."
    world: int = 1
    "Processes of the training."
    ranks: list[Any] = field(default_factory=list)
    "What each process of a training of several held (RankSeen), where all of them reported."

    def restart(self) -> None:
        """Forget a training that was taken for the distillation: the true one begins."""
        old, steps = self.losses, self.updates.steps
        for step in steps:
            step.distils = False
        self.losses = Losses(backwards=old.backwards, windows_seen=old.windows_seen, functions=old.functions)
        self.updates = Updates(steps=steps, movable=self.updates.movable, optimizers=self.updates.optimizers)
        self.teacher, self.data = Teacher(), Data()

    def name(self, param: nn.Parameter) -> str:
        """Return a parameter's dotted name, or its shape if it belongs to no declared module."""
        return self.names.get(id(param), f"unnamed parameter of shape {tuple(param.shape)}")
