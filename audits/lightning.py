"""The audits as a Lightning callback: ``Trainer(callbacks=[KDAudit()])``. Needs lightning >= 2.4."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdbench.audits.callbacks import TrainerAudit
from kdbench.audits.trace import Clip

__all__ = ["KDAudit"]


class KDAudit(TrainerAudit, Callback):
    """Audit the first steps of a fit; see :class:`audits.callbacks.TrainerAudit` for what can be declared."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch, with the trainer's optimizers and its gradient clipping as the declared ones."""
        norm = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        self._begin(pl_module, trainer.optimizers, Clip(float(norm)) if norm else None)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop when enough was seen."""
        self._stepped()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what a short training showed."""
        self._end()

    def on_exception(self, *args: Any) -> None:
        """Leave no hook behind when the fit breaks off."""
        self._let_go()
