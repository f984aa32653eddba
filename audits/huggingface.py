"""The audits as a callback of Hugging Face's Trainer: ``Trainer(..., callbacks=[KDAudit(teacher=teacher)])``.

Needs transformers >= 4.46. A Trainer tells its callbacks of no exception: when one ends the training, the hooks go
with the callback, or when it begins to train again.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from kdbench.audits.callbacks import TrainerAudit
from kdbench.audits.trace import Clip

__all__ = ["KDAudit"]


class KDAudit(TrainerAudit, TrainerCallback):
    """Audit the first steps of a training; see :class:`audits.callbacks.TrainerAudit` for what can be declared."""

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, *, model: nn.Module, optimizer: Optimizer, **rest: Any
    ) -> None:
        """Begin to watch, with the trainer's optimizer and ``max_grad_norm`` as the declared ones."""
        self._begin(model, [optimizer], Clip(args.max_grad_norm) if args.max_grad_norm else None)

    def on_step_end(self, *args: Any, **rest: Any) -> None:
        """Stop when enough was seen."""
        self._stepped()

    def on_train_end(self, *args: Any, **rest: Any) -> None:
        """Report what a short training showed."""
        self._end()
