"""Answers that teach nothing: in no loss, of no class, one for all samples, asked for in vain, or taken for several."""

from dataclasses import dataclass
from typing import Literal

from kdbench.audits.updates import Where


@dataclass(frozen=True)
class Unheard:
    """A divergence between student and teacher that could be learned from, and that no backward reached."""

    windows: int
    "Backwards before which it was computed."
    where: Where


@dataclass(frozen=True)
class Blank:
    """A divergence whose targets came to hold one number for every class."""

    told: int
    "Backwards before that."
    windows: int
    "Backwards in a row since."
    where: Where


@dataclass(frozen=True)
class Asked:
    """A network that is asked while another learns, and of whose answers nothing is made."""

    windows: int
    "Backwards before which it was."
    name: str
    where: Where | None


@dataclass(frozen=True)
class Collapsed:
    """Targets that are one for every sample, where the teacher's own answers tell the samples apart."""

    windows: int
    "Backwards in which they were."
    named: int
    "The class that they name, in the last of them."
    rows: int
    "Rows of that one."
    where: Where | None


@dataclass(frozen=True)
class Echoed:
    """A teacher that answered bit for bit as the student from the first backward on."""

    windows: int
    "Backwards in which it did."
    where: Where | None


@dataclass(frozen=True)
class Standing:
    """A term whose teacher's side is the same in every backward, though each has another batch."""

    windows: int
    "Backwards after the first in which it was so."
    name: str
    "Of the function that compares."
    where: Where | None


@dataclass(frozen=True)
class Repeated:
    """Two answers of a teacher's to one input that are taken for several."""

    how: Literal["difference", "mixture", "each", "twins"]
    where: Where | None
    times: int = 2
    "Answers in all."


@dataclass(frozen=True)
class Remade:
    """A number that is made into a tensor of its own and added to a loss."""

    windows: int
    "How often."
    where: Where | None


@dataclass(frozen=True)
class Frames:
    """Frames of padding, and how many of them get a gradient."""

    beyond: int
    heard: int
    told: str
    "Who is given the lengths beyond which they lie."
