"""At which size do the first layers of a network see an image?"""

from dataclasses import replace
from typing import Literal

from torch import nn

from kdbench.audits.infer.layers import descendants, path_of
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Sight, Spatial, Trace

FIRST = 3
"Calls that make a stem: the convolution, and the pool after it if there is one, with one more to see that."


class Stems(Observer):
    """Takes down the first calls of convolutions or pools in student and teacher of a script."""

    def __init__(self, trace: Trace, taint: Taint) -> None:
        self._trace, self._taint = trace, taint

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Look at the stems that were not seen yet; those of declared networks are seen as they are called."""
        if not self._trace.script:
            return
        spatial = self._trace.data.spatial
        for role, groups, mask in (
            ("student", cast.students, cast.student_mask),
            ("teacher", cast.teachers, cast.teacher_mask),
        ):
            if role in spatial:
                continue
            calls = [c for g in groups for c in g.calls]
            under = descendants(raw, calls)
            if not under:  # the network was never called as a whole
                under = [c for c in raw.calls if self._taint.mask(c.module.parameters()) & mask]
            shapes = [(c, tuple(c.given[0].shape) if c.given else None) for c in under]
            found = [
                (c.index, s)
                for c, given in shapes
                if (s := spatial_call(path_of(c, calls), c.module, given, c.shape)) is not None
            ]
            inside = {c.index for c in under}
            found += [
                (number, Spatial("max_pool2d", "pool", kernel, stride, before, after))  # type: ignore[arg-type]
                for number, within, kernel, stride, before, after in raw.pools
                if within in inside
            ]
            place = next((c.where for c in under if c.where is not None), None)
            first = [replace(s, where=place) for _, s in sorted(found, key=lambda item: item[0])][:FIRST]
            if first:
                spatial[role] = first


def spatial_call(
    name: str, module: nn.Module, given: tuple[int, ...] | None, returned: tuple[int, ...] | None
) -> Spatial | None:
    """Return what a convolution or pool did to the size of an image, from the shapes of its input and output."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or given is None or returned is None:
        return None
    kernel, stride = (max(v) if isinstance(v, tuple) else int(v) for v in (module.kernel_size, module.stride))
    before, after = given[-2:], returned[-2:]
    kind: Literal["conv", "pool"] = "conv" if isinstance(module, nn.Conv2d) else "pool"
    return Spatial(name, kind, kernel, stride, (int(before[0]), int(before[1])), (int(after[0]), int(after[1])))
