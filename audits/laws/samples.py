"""Samples of whatever form, and their content: two samples are one image where their contents are equal."""

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdbench.audits.laws.answers import OddAnswerError, short


def content(sample: Any) -> str:
    """Return form and digest of a sample's image, the first array in it; raise OddAnswerError if there is none."""
    image = image_in(sample)
    if image is None:
        raise OddAnswerError(f"the sample is {short(sample)}: it holds no tensor, array or PIL image")
    if isinstance(image, Tensor):
        image = image.detach().cpu().contiguous()
        form, data = f"{image.dtype} {tuple(image.shape)}", ctypes.string_at(image.data_ptr(), image.nbytes)
    else:  # numpy, PIL
        form = f"{getattr(image, 'dtype', '') or image.mode} {getattr(image, 'shape', '') or image.size}"
        data = image.tobytes()
    return f"{form}: {hashlib.sha256(data).hexdigest()}"


def image_in(sample: Any) -> Any:
    """Return the first tensor or array of at least one dimension, or PIL image, of a sample; None if there is none."""
    if isinstance(sample, Mapping):
        sample = tuple(sample.values())
    if isinstance(sample, list | tuple):
        return next((image for part in sample if (image := image_in(part)) is not None), None)
    is_array = hasattr(sample, "dtype") and getattr(sample, "ndim", 0) > 0
    return sample if is_array or (hasattr(sample, "tobytes") and hasattr(sample, "mode")) else None
