"""Functions that answer otherwise in training: dropout by whatever name, norms by the batch, layers that drop."""

from itertools import pairwise
from typing import Any

from torch import Tensor

_DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout"})
_NORMS = frozenset({"batch_norm", "instance_norm"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_DRAWS = frozenset({"bernoulli", "bernoulli_"})
FUNCTIONS = _DROPOUTS | _NORMS | _RECURRENT | _DRAWS | {"scaled_dot_product_attention", "multi_head_attention_forward"}


def depends(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> bool:
    """Say whether a call of one of these functions answers as in training; `training` is the mode of its module."""

    def arg(position: int, key: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(key, default)

    if name == "scaled_dot_product_attention":
        return float(arg(4, "dropout_p", 0.0)) > 0
    if name == "multi_head_attention_forward":
        return bool(arg(10, "dropout_p", 0.0)) and bool(arg(13, "training", True))
    if name in _RECURRENT:  # the rate and the mode stand side by side, after tensors, flags and sizes
        return any(type(rate) is float and rate > 0 and mode is True for rate, mode in pairwise(args))
    if name in _DRAWS:  # paths that are dropped draw for themselves
        return training
    is_training = arg(2 if name in _DROPOUTS else 5, "training", name != "batch_norm")
    rate = args[1] if len(args) > 1 and not isinstance(args[1], Tensor) else kwargs.get("p", 0.5)
    return is_training is True and (name in _NORMS or bool(rate))
