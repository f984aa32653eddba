"""Which stages of teacher and student a study matches, asked of the networks before anything is trained."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from kdbench.harness.plan.preset import Preset, chain_of
from kdbench.kd.data import Dataset
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS, why_not_stages
from kdbench.kd.models import MODELS, check, parse_stages
from kdbench.kd.procedure import CANONICAL


def stages_together(preset: Preset, data: Dataset) -> dict[str, list[str]]:
    """Return, by pair, which stages are matched, teacher first: "2 (64x8x8) with 1 (16x16x16)".

    Networks that do not answer as they must, or without the stages that a method reads, are an InputError. Pairs of our
    own ResNets are not asked: each has four stages.
    """
    matched = [method for method in preset.methods if METHODS[method].stages != "none"]
    stem, width, found = CANONICAL.stem(data.size), preset.recipe.base_width, {}
    for pair, archs in _links(preset):
        told = preset.stages.get(pair)
        if told is None and all(MODELS[arch].digest is None and MODELS[arch].has_stem for arch in archs):
            continue
        shapes = {arch: check(arch, stem, len(data.classes), width, data.size) for arch in archs}
        teachers, students = (shapes[arch] for arch in archs)
        together = [(n, n) for n in range(1, 1 + min(len(teachers), len(students)))]
        if told is not None:
            together = parse_stages(told)
            _check_told(pair, together, archs, shapes)
        else:
            _check_counts(pair, matched, archs, shapes)
        if told is None and not any(METHODS[method].stages == "all" for method in matched):
            together = [(len(teachers), len(students))]  # the last ones alone are read
        if matched:
            found[pair] = [f"{t} ({_by(teachers[t - 1])}) with {s} ({_by(students[s - 1])})" for t, s in together]
    return found


def _links(preset: Preset) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield who teaches whom: each pair under its name, and of a chain the links before the last under their own."""
    for pair in preset.pairs:
        *before, last = pairwise(chain_of(pair))
        yield from ((f"{teacher}-{student}", (teacher, student)) for teacher, student in before)
        yield pair, last


def _check_told(
    pair: str, together: list[tuple[int, int]], archs: tuple[str, str], shapes: dict[str, list[tuple[int, ...]]]
) -> None:
    for arch, asked in zip(archs, zip(*together, strict=True), strict=True):
        if max(asked) > len(shapes[arch]):
            raise InputError(
                f"[pair.{pair}] stages asks for stage {max(asked)} of {arch}, which has {len(shapes[arch])}: "
                f"{_listed(shapes[arch])}"
            )


def _check_counts(
    pair: str, methods: list[str], archs: tuple[str, str], shapes: dict[str, list[tuple[int, ...]]]
) -> None:
    teacher, student = archs
    counts = len(shapes[student]), len(shapes[teacher])
    why = next(filter(None, (why_not_stages(method, *counts) for method in methods)), None)
    if why is not None:
        said = "; ".join(f"{arch} answers with {len(of)} ({_listed(of)})" for arch, of in shapes.items())
        told = f'[pair."{pair}"] stages = "{_of_one_size(archs, shapes)}"'
        words = f"; say which go together, teacher-student, such as {told}" if all(counts) else ""
        raise InputError(f"{why} of {pair}: {said}{words}")


def _of_one_size(archs: tuple[str, str], shapes: dict[str, list[tuple[int, ...]]]) -> str:
    """Return which stages of teacher and student are of one size, as a file names them; the first of each if none."""
    teacher, student = (shapes[arch] for arch in archs)
    same = {t: s for s, of_s in enumerate(student, 1) for t, of_t in enumerate(teacher, 1) if of_s[1:] == of_t[1:]}
    return ", ".join(f"{t}-{s}" for t, s in sorted(same.items())) or "1-1"


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{n} {_by(shape)}" for n, shape in enumerate(shapes, 1)) or "none"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
