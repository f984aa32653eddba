"""A training of a language model, token by token, and its faults: for the audits that images do not reach.

Each decision of the training is one function, and a fault is another in its place, as in the trainings of images. It is
seen as a stranger's script. The texts are pieces of the Zen of Python, which the standard library holds.
"""

import codecs
import difflib
import functools
import io
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.audits.finding import Report
from kdbench.harness.faults.registry import Fault, audit_ids, source
from kdbench.harness.zoo.clean.material import LanguageModel, trained
from kdbench.harness.zoo.clean.registry import Open
from kdbench.harness.zoo.clean.run import observe

PAD, T, STEPS, LONGEST, PROMPT, UNUSED = 0, 2.0, 5, 24, 3, 2
"""Padding; the temperature; optimizer steps; characters of a text at most, and of its prompt; and characters that only
the teacher's table has."""
MICRO = (6, 4)
"Texts of the micro-batches of one step."


@functools.cache
def texts() -> list[str]:
    """Return the Zen of Python in pieces of at most `LONGEST` characters."""
    with redirect_stdout(io.StringIO()):  # it prints itself where it is imported first
        import this
    lines = codecs.decode(this.s, "rot13").splitlines()
    pieces = [piece for line in lines for piece in textwrap.wrap(line, LONGEST)]
    return [piece for piece in pieces if len(piece) >= 2 * PROMPT]


@functools.cache
def letters() -> dict[str, int]:
    """Return the number of each character; 0 is padding."""
    return {letter: i for i, letter in enumerate(sorted({*"".join(texts())}), 1)}


def draw(n: int) -> Tensor:
    """Draw texts (n, L), padded at their ends to the longest."""
    known = letters()
    drawn = [texts()[i] for i in torch.randint(0, len(texts()), (n,)).tolist()]
    rows = [torch.tensor([known[letter] for letter in text]) for text in drawn]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def _network(width: int, more: int = 0) -> LanguageModel:
    return LanguageModel(width, len(letters()) + 1 + more)


@functools.cache
def checkpoint() -> bytes:
    """Train the teacher once, on whole texts, and return its checkpoint."""

    def batch() -> tuple[Tensor, Tensor]:
        ids = draw(16)
        return ids, F.pad(ids, (0, 1))[:, 1:].masked_fill(F.pad(ids, (0, 1))[:, 1:] == PAD, -100)

    with torch.random.fork_rng():
        torch.manual_seed(99)
        file = io.BytesIO()
        torch.save(trained(_network(32, UNUSED), batch, 60).state_dict(), file)
    return file.getvalue()


# --- the decisions


def load(kept: bytes) -> LanguageModel:
    """Return the teacher."""
    net = _network(32, UNUSED)
    net.load_state_dict(torch.load(io.BytesIO(kept)))
    return net.eval()


def meet(teacher: Tensor) -> Tensor:
    """Return the teacher's logits (B, L - 1, V) beside the student's, each of which tells the next character."""
    return teacher[:, :-1]


def soften(teacher: Tensor, words: int) -> Tensor:
    """Return the teacher's probabilities of the student's characters, the first ones in its longer table."""
    return F.softmax(teacher[..., :words] / T, -1)


def places(mask: Tensor, labels: Tensor) -> Tensor:
    """Return which of the places (B, L - 1) are distilled: those with a label."""
    return labels[:, 1:] != -100


def divide(each: Tensor, on: Tensor, count: int) -> Tensor:
    """Return a micro-batch's part of the mean of the divergences (B, L - 1) over the `count` tokens of the step."""
    return (each * on).sum() / count


def label_loss(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return a micro-batch's part of the mean cross-entropy over the `count` labels of the step."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count


@dataclass(frozen=True)
class Decisions:
    """What the training does at each place where a fault may act."""

    load: Callable[[bytes], LanguageModel] = load
    meet: Callable[[Tensor], Tensor] = meet
    soften: Callable[[Tensor, int], Tensor] = soften
    places: Callable[[Tensor, Tensor], Tensor] = places
    divide: Callable[[Tensor, Tensor, int], Tensor] = divide
    label_loss: Callable[[Tensor, Tensor, int], Tensor] = label_loss


RIGHT = Decisions()


def training(decide: Decisions) -> Callable[[Open], nn.Module]:
    """Return a training of a few steps, of two micro-batches each, for the clean zoo's way of observing."""

    def loop(watch: Open) -> nn.Module:
        student, teacher = _network(16), decide.load(checkpoint())
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        with watch(student=student, teacher=teacher, optimizer=optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                batches = [draw(n) for n in MICRO]
                told = [_labels(ids) for ids in batches]
                count = sum(int((labels[:, 1:] != -100).sum()) for labels in told)
                for ids, labels in zip(batches, told, strict=True):
                    _loss(decide, student, teacher, ids, labels, count).backward()
                optimizer.step()
        return student

    return loop


def _labels(ids: Tensor) -> Tensor:
    """Return the characters that are to be told: neither padding nor prompts are."""
    labels = ids.masked_fill(ids == PAD, -100)
    labels[:, :PROMPT] = -100
    return labels


def _loss(decide: Decisions, student: nn.Module, teacher: nn.Module, ids: Tensor, labels: Tensor, n: int) -> Tensor:
    mask = (ids != PAD).long()
    with torch.no_grad():
        answer = teacher(ids, mask)
    logits = student(ids, mask)
    target = decide.soften(decide.meet(answer), logits.shape[-1])
    each = F.kl_div(F.log_softmax(logits[:, :-1] / T, -1), target, reduction="none").sum(-1) * T * T
    soft = decide.divide(each, decide.places(mask, labels), n)
    return 0.5 * decide.label_loss(logits, labels, n) + 0.5 * soft


# --- the faults


@dataclass(frozen=True)
class TokenFault(Fault):
    """One bug in the training of a language model."""

    def difference(self) -> str:
        """Return the difference to the right function as a unified diff, computed from the sources."""
        before, after = (source(f).splitlines() for f in (getattr(RIGHT, self.seam), self.function))
        lines = difflib.unified_diff(before, after, f"canonical {self.seam}", f"fault {self.name}", lineterm="", n=20)
        return "\n".join(lines)

    @property
    def decisions(self) -> Decisions:
        """The decisions with this one in place of the right one."""
        return replace(RIGHT, **{self.seam: self.function})


TOKEN_FAULTS: dict[str, TokenFault] = {}
"Every fault by its name, which is its function's in kebab case."

Function = Callable[..., object]


def _fault(seam: str, *, caught_by: str, follows: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Register a function as the fault that replaces a decision, by the names of audits."""
    assert seam in {field.name for field in fields(Decisions)} and {caught_by, *follows} <= {*audit_ids()}

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        TOKEN_FAULTS[name] = TokenFault(name, seam, function, (caught_by,), follows, "student", None)
        return function

    return register


@_fault("load", caught_by="teacher-provenance")
def teacher_from_its_configuration(kept: bytes) -> LanguageModel:
    """The teacher is built and its checkpoint never read.

    As `AutoModelForCausalLM.from_config` does it, which looks like `from_pretrained`.
    """
    net = _network(32, UNUSED)
    return net.eval()


@_fault("meet", caught_by="alignment")
def teacher_one_ahead(teacher: Tensor) -> Tensor:
    """The teacher's answers begin at the second place: each token is taught what comes after the next one."""
    return teacher[:, 1:]


@_fault("meet", caught_by="alignment")
def texts_exchanged(teacher: Tensor) -> Tensor:
    """The teacher's texts stand in another order: each text is taught by the answers to another one."""
    return teacher.flip(0)[:, :-1]


@_fault("soften", caught_by="alignment")
def vocabulary_cut_at_its_front(teacher: Tensor, words: int) -> Tensor:
    """Of a teacher's wider vocabulary the first words are dropped, not the last: each word is taught as another one."""
    return F.softmax(teacher[..., -words:] / T, -1)


@_fault("soften", caught_by="alignment")
def vocabulary_cut_after_softmax(teacher: Tensor, words: int) -> Tensor:
    """The teacher's probabilities are cut instead of its logits, and do not sum to one."""
    return F.softmax(teacher / T, -1)[..., :words]


@_fault("places", caught_by="token-mask")
def padding_distilled(mask: Tensor, labels: Tensor) -> Tensor:
    """Each place counts, padding too: the shorter a text, the more of what it teaches is nothing.

    Seen in peremartra/optipfair#34, where the fix moved the perplexity by 4 points.
    """
    return torch.ones_like(labels[:, 1:], dtype=torch.bool)


@_fault("places", caught_by="token-mask")
def prompts_distilled(mask: Tensor, labels: Tensor) -> Tensor:
    """What is no padding is distilled, prompts too, though the labels leave them out.

    Seen in linkedin/Liger-Kernel#974.
    """
    return mask[:, 1:].bool()


@_fault("places", caught_by="token-mask")
def mask_one_place_late(mask: Tensor, labels: Tensor) -> Tensor:
    """The mask is not shifted with the logits: the first token of each answer is lost, and what follows the last kept.

    Logits tell the next word, so the place before a label is the one that is asked for it.
    """
    return labels[:, :-1] != -100


@_fault("divide", caught_by="token-weights")
def each_micro_batch_by_its_own(each: Tensor, on: Tensor, count: int) -> Tensor:
    """Each micro-batch is divided by its own tokens, so that tokens of a short one weigh more.

    Seen in huggingface/trl#4719 and #6006.
    """
    return (each * on).sum() / on.sum() / len(MICRO)


@_fault("divide", caught_by="token-weights")
def each_text_by_its_own(each: Tensor, on: Tensor, count: int) -> Tensor:
    """The mean over texts of each one's mean: a token of a short answer outweighs one of a long answer.

    Seen in modelscope/ms-swift#10076.
    """
    return ((each * on).sum(1) / on.sum(1)).sum() / sum(MICRO)


@_fault("divide", caught_by="token-weights")
def divided_by_padding_too(each: Tensor, on: Tensor, count: int) -> Tensor:
    """The mean is taken over all places, so that the term fades as padding grows."""
    return (each * on).mean() / len(MICRO)


@_fault("label_loss", caught_by="alignment")
def labels_not_shifted(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Each place is asked for the character that it is shown, so that the student learns to copy its input.

    The loss falls fast and looks splendid.
    """
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / count


# --- what the audits say of it


@dataclass(frozen=True)
class TokenRun:
    """One training with one fault, or none, and what the audits say about it."""

    fault: TokenFault | None
    seed: int
    report: Report

    @property
    def departures(self) -> list[str]:
        """In what the audits did not say what the fault, or its absence, declares; warnings count."""
        failed = {f.id: f.consequence_of for f in self.report.failed("warn")}
        broken = [f"{f.id} could not do its work" for f in self.report.findings if f.status == "error"]
        if self.fault is None:
            passed = {f.id for f in self.report.findings if f.status == "pass"}
            needed = {id for fault in TOKEN_FAULTS.values() for id in fault.ids(fault.caught_by)}
            silent = [f"{id} did not pass" for id in sorted(needed - passed - failed.keys())]
            return [*broken, *(f"{id} failed" for id in sorted(failed)), *silent]
        caught, follows = self.fault.ids(self.fault.caught_by), self.fault.ids(self.fault.follows)
        missed = [f"{id} did not fail" for id in caught if id not in failed]
        more = [f"{id} failed and is not declared" for id in sorted(failed) if id not in (*caught, *follows)]
        behind = [f"{id} failed as a consequence, not as a root cause" for id in caught if failed.get(id)]
        return [*broken, *missed, *more, *behind]


def audit_tokens(fault: TokenFault | None, seed: int) -> TokenRun:
    """Train with a fault, or rightly, under all audits, as a stranger's script is seen."""
    checkpoint()  # trained before anything is watched
    seen = observe(training(fault.decisions if fault is not None else RIGHT), seed, "foreign")
    assert seen.report is not None
    return TokenRun(fault, seed, seen.report)
