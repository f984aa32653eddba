"""What may be read of a tensor that is not ours: its numbers may be freed, lie elsewhere, or never have been there.

Sharded training frees the memory of a parameter while nobody computes with it, and leaves the tensor standing: to read
it then ends the process. So whatever the audits read, clone or compare goes through here first.
"""

import torch
from torch import Tensor

_PLAIN = Tensor.__torch_dispatch__
"What a tensor has that is no wrapper around others: fake, functional, sharded and quantised ones have their own."


def is_wrapper(value: Tensor) -> bool:
    """Say whether a tensor is none of torch's plain ones, but stands for others: a share of one, a fake."""
    return type(value).__torch_dispatch__ is not _PLAIN


def numbers(value: Tensor) -> Tensor | None:
    """Return what of a tensor lies in this process's memory, detached; None where nothing does."""
    if is_wrapper(value):
        share = getattr(value, "to_local", None)  # the part of a sharded tensor that is kept here
        if share is None:
            return None
        with torch.no_grad():
            value = share()
        if is_wrapper(value):
            return None
    if value.is_meta:
        return None
    if value.layout is torch.strided and value.numel():
        try:
            if not value.untyped_storage().size():
                return None
        except NotImplementedError:  # under torch.func a tensor stands for many
            return None
    return value.detach()


def is_readable(value: Tensor) -> bool:
    """Say whether a tensor is a plain one whose numbers are there: what torch computes of it is one tensor too."""
    return not is_wrapper(value) and numbers(value) is not None


def copy_of(value: Tensor) -> Tensor | None:
    """Return a copy of what of a tensor lies here; None where nothing does."""
    here = numbers(value)
    return None if here is None else here.clone()


def is_still(value: Tensor, copy: Tensor) -> bool:
    """Say whether a tensor holds what it did when it was copied; also where nothing of it lies here any more."""
    here = numbers(value)
    return here is None or here.shape != copy.shape or torch.equal(here, copy)


def address(value: Tensor) -> int:
    """Return where a tensor's numbers begin, 0 where none lie here: two tensors at 0 have nothing in common."""
    here = numbers(value)
    return 0 if here is None or here.layout is not torch.strided else here.data_ptr()


def are_equal(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are one, or hold the same numbers in one shape and type."""
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
