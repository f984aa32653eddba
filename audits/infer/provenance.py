"""Does the teacher hold the weights that were declared for it?"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdbench.audits.infer.layers import plain_name
from kdbench.audits.observe.readable import address, is_readable
from kdbench.audits.trace import Provenance


def provenance(teacher: nn.Module, weights: Mapping[str, Tensor]) -> Provenance:
    """Hold the teacher's state against a declared state dict; ValueError where that holds anything but tensors."""
    weights = {name: value for name, value in weights.items() if not _carries_no_weight(name)}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            hint = f"; perhaps pass teacher_weights[{name!r}]" if isinstance(value, Mapping) else ""
            raise ValueError(f"kdbench.watch: teacher_weights: {name!r} is a {type(value).__name__}, no tensor{hint}")
    declared = {plain_name(name): value for name, value in weights.items()}
    state = teacher.state_dict().items()
    own = {name: value for name, value in state if not _carries_no_weight(name) and is_readable(value)}
    equal, differing, aliases = [], [], []
    for name, value in own.items():
        other = declared.get(plain_name(name))
        if other is not None and address(other) == address(value) and value.numel():
            aliases.append(name)
        elif other is not None and other.shape == value.shape and torch.equal(value.cpu(), other.to(value).cpu()):
            equal.append(name)
        else:
            differing.append(name)
    # Tied tensors stand in a checkpoint under one of their names.
    tied = {address(own[name]) for name in equal}
    lost = [name for name in differing if plain_name(name) in declared or address(own[name]) not in tied]
    equal += [name for name in differing if name not in lost]
    return Provenance(
        sum(own[name].numel() for name in equal),
        sum(value.numel() for value in own.values()),
        lost,
        sorted(declared.keys() - {plain_name(name) for name in own}),
        aliases,
    )


def _carries_no_weight(name: str) -> bool:
    """Say whether an entry of a state dict is a counter, or a module's own notes."""
    return name.endswith(("num_batches_tracked", "n_averaged", "_extra_state"))
