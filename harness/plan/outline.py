"""What can be said of a study before PyTorch is imported: its presets' names, its seeds, and roughly what it holds."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from kdbench.harness.plan.variants import VARIANTS
from kdbench.harness.records.reading import content, parse_toml
from kdbench.kd.errors import InputError

PRESETS = ("quick", "methods", "cifar10", "paper", "cifar100-crd", "cifar100-slim")


def preset_text(name: str) -> str:
    """Return the TOML text of a preset."""
    return (resources.files("kdbench.harness.presets") / f"{name}.toml").read_text(encoding="utf-8")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds written as numbers and ranges: "0-2", "0,3,5-7"."""
    seeds: set[int] = set()
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"seeds {text!r} are no range; write them as 0-2 or 0,3,5-7")
        if int(last or first) - int(first) >= 1000:
            raise InputError(f"seeds {text!r} are more than 1000; check them for a typo")
        seeds.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(seeds))


def asked_seeds(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Read the seeds of an option; a lone number other than 0 is refused, since it may mean that many seeds."""
    number = int(text) if text.strip().isdecimal() else 0
    if number:
        many = "one seed" if number == 1 else f"{number} seeds"
        raise InputError(
            f"{option} {number} might mean {many} or the seed {number}; write 0-{number - 1} for {many}, "
            f"{number}-{number} for the seed {number}"
        )
    return parse_seeds(text)


def outline(
    name: str,
    *,
    dataset: str | None,
    pairs: Sequence[str],
    methods: Sequence[str],
    seeds: str | None,
    arms: int | None,
    controls: bool = True,
) -> str | None:
    """Say in one line what a study will train, from its file and options alone.

    `arms` is their number where options name them. Return None for a file that cannot be read this simply: the
    reading that comes after says what is wrong with it.
    """
    try:
        study = parse_toml(preset_text(name).encode() if name in PRESETS else content(Path(name)), name)["study"]
        dataset = dataset or study["dataset"]
        pairs, methods = pairs or study["pairs"], methods or study["methods"]
        arms = arms or len(study.get("arms", VARIANTS["both"]))
        count = len(asked_seeds(seeds)) if seeds is not None else len(parse_seeds(study["seeds"]))
        factors = [(arms, "arm"), (len(methods), "method"), (len(pairs), "pair"), (count, "seed")]
        product = " x ".join(f"{number} {word}s" for number, word in factors if number > 1) or "1 arm"
        students = arms * len(methods) * len(pairs) * count
        what = f"{Path(name).stem}: {dataset}, {', '.join(pairs)}; {product}"
        beside = "teachers and controls" if controls else "teachers"
        return f"{what}: at most {students} student{'s' * (students != 1)}, their {beside}"
    except (KeyError, TypeError, AttributeError, InputError):
        return None


def in_words(seconds: float) -> str:
    """Return a stretch of time, rounded: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
