"""Compiled code: the audits see what goes into it and what comes out, and nothing of what it computes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from kdbench.audits.observe import hooks


@contextmanager
def watching(tell: Callable[[], None], compiles: bool) -> Iterator[None]:
    """Tell that something is compiled; unless `compiles`, leave it as it is, so that it is seen."""

    def of_torch(original: Any) -> Any:
        def compile(model: Any = None, *args: Any, **kwargs: Any) -> Any:
            if compiles:
                tell()
                return original(model, *args, **kwargs)
            return (lambda it: it) if model is None else model

        return compile

    def of_module(original: Any) -> Any:
        def compile(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if compiles:
                tell()
                return original(module, *args, **kwargs)
            return None

        return compile

    with ExitStack() as stack:
        stack.enter_context(hooks.patched(torch, "compile", of_torch))
        stack.enter_context(hooks.patched(nn.Module, "compile", of_module))
        yield
