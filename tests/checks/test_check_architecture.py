"""Verdicts on the networks' first layers, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BEHIND,
    DECLARED,
    DEEP,
    SEVEN,
    THREE,
    Cases,
    conv,
    fails,
    judge,
    named,
    net,
    passes,
    pool,
    trace,
    undecided,
)

from kdbench.audits.trace import Spatial

CASES: Cases = {}


def stem(call: Spatial, after: Spatial, role: str = "student") -> dict[str, Any]:
    slip = {"input": [32, 32], "after_two_modules": list(after.output_size), "module": call.name}
    return {role: slip | {"kernel": call.kernel, "stride": call.stride}}


FINE = {"student": {"input": [32, 32], "first": "conv"}}
FIRST = {"student": {"input": [32, 32], "first": "conv1"}}
STRIDED = "a stride-2 convolution followed by a pool (conv1)"

CASES["KD105"] = {
    "no image": (trace(), undecided("out-of-scope", "no student or teacher with at least two layers")),
    "one call": (net(SEVEN), undecided("out-of-scope", "no student or teacher with at least two layers")),
    "65 pixels": (
        net(conv(7, 2, 65), conv()),
        undecided("out-of-scope", "the first convolution's input is larger than 64 pixels"),
    ),
    "64 by 65 pixels": (net(conv(7, 2, (64, 65)), conv()), undecided("out-of-scope", "larger than 64 pixels")),
    "64 by 48 pixels": (
        net(conv(7, 2, (64, 48), name="conv1"), conv(size=(32, 24))),
        fails(
            "an ImageNet stem on small images: the student reads 64x48 images through a 7x7 convolution with stride 2 "
            "(conv1)",
            DECLARED,
            student={"input": [64, 48], "after_two_modules": [32, 24], "module": "conv1", "kernel": 7, "stride": 2},
        ),
    ),
    "3x3": (net(conv(), conv(), conv()), passes("no ImageNet stem within the first two", **FINE)),
    "7x7, stride 2": (net(SEVEN, DEEP), fails("a 7x7 convolution with stride 2", DECLARED, **stem(SEVEN, DEEP))),
    "9x9, stride 2": (
        net(conv(9, 2), DEEP),
        fails("a 9x9 convolution with stride 2", DECLARED, **stem(conv(9, 2), DEEP)),
    ),
    "7x7, stride 2, second": (
        net(conv(), SEVEN, DEEP),
        fails("a 7x7 convolution with stride 2 (conv1)", DECLARED, **stem(SEVEN, SEVEN)),
    ),
    "7x7, stride 2, third": (net(conv(), conv(), SEVEN), passes("no ImageNet stem", **FINE)),
    "6x6, stride 2": (net(conv(6, 2), DEEP), passes("no ImageNet stem", **FINE)),
    "7x7, stride 1": (net(conv(7, 1), conv()), passes("no ImageNet stem", **FINE)),
    "patches of 8, stride 4": (net(conv(8, 4), conv(size=8)), passes("no ImageNet stem", **FINE)),
    "a pool of 7, stride 2": (net(conv(), pool(7), DEEP), passes("no ImageNet stem", **FINE)),
    "stride 2, and a pool": (net(THREE, BEHIND, conv(size=8)), fails(STRIDED, DECLARED, **stem(THREE, BEHIND))),
    "stride 4, and a pool of 3": (
        net(conv(3, 4, name="conv1"), pool(3, 3, size=8), conv(size=2)),
        fails(
            "a stride-4 convolution followed by a pool (conv1)",
            DECLARED,
            **stem(conv(3, 4, name="conv1"), pool(3, 3, size=8)),
        ),
    ),
    "stride 2, and a pool of stride 1": (net(THREE, pool(3, 1, size=16), DEEP), passes("no ImageNet stem", **FIRST)),
    "stride 1, and a pool": (net(conv(), pool(), DEEP), passes("no ImageNet stem", **FINE)),
    "stride 2, and a pool, and nothing": (net(THREE, BEHIND), passes("no ImageNet stem", **FIRST)),
    "stride 2, and two pools": (net(THREE, BEHIND, pool(size=8)), passes("no ImageNet stem", **FIRST)),
    "stride 2, and a pool beside it": (net(THREE, pool(), conv(size=16)), passes("no ImageNet stem", **FIRST)),
    "stride 2 twice": (net(THREE, conv(3, 2, 16), conv(size=8)), passes("no ImageNet stem", **FIRST)),
    "two pools": (
        net(pool(), BEHIND, conv(size=8)),
        passes("no ImageNet stem", student={"input": [32, 32], "first": "pool"}),
    ),
    "both networks": (
        trace(spatial={"student": [SEVEN, DEEP], "teacher": [THREE, BEHIND, conv(size=8)]}),
        fails(
            f"(conv1); the teacher reads 32x32 images through {STRIDED}",
            DECLARED,
            **stem(SEVEN, DEEP),
            **stem(THREE, BEHIND, "teacher"),
        ),
    ),
    "the teacher alone": (
        trace(spatial={"student": [conv(), conv()], "teacher": [SEVEN, DEEP]}),
        fails("the teacher reads", DECLARED, **stem(SEVEN, DEEP, "teacher")),
    ),
    "a teacher that is shown larger images": (
        trace(spatial={"student": [conv(), conv()], "teacher": [conv(7, 2, 224), conv()], "other": [SEVEN]}),
        passes("no ImageNet stem", **FINE),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
