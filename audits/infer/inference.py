"""From raw windows to what the checks read: calls the observers in turn."""

import torch
from torch import nn

from kdbench.audits.infer.batches import Batches
from kdbench.audits.infer.blank import Blanks
from kdbench.audits.infer.collapsed import CollapsedTargets
from kdbench.audits.infer.cut_losses import CutLosses
from kdbench.audits.infer.features import Features
from kdbench.audits.infer.gradients import Gradients
from kdbench.audits.infer.masks import Masks
from kdbench.audits.infer.modes import Modes
from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.over_steps import Echo, StandingSides
from kdbench.audits.infer.parameters import Parameters
from kdbench.audits.infer.players import Players
from kdbench.audits.infer.roles import Declared
from kdbench.audits.infer.stems import Stems
from kdbench.audits.infer.stored import Stored
from kdbench.audits.infer.teacher import TeacherState
from kdbench.audits.infer.terms import Terms
from kdbench.audits.infer.tokens import TokensSeen
from kdbench.audits.infer.unheard import Divergences
from kdbench.audits.observe.lineage import Lineage
from kdbench.audits.observe.loads import Loads
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Sight, Trace


class Inference:
    """Tells every observer of each answer, window and step; a new question is a new observer in this list."""

    def __init__(
        self,
        trace: Trace,
        taint: Taint,
        loads: Loads,
        declared: Declared,
        windows: int,
        lineage: Lineage,
    ) -> None:
        self._trace, self._loads = trace, loads
        self.windows = windows
        "Windows to be looked at."
        self.known = known = Known()
        names = Names(trace, taint, known)
        self.stored = stored = Stored(trace, taint)
        self.players = Players(trace, taint, known, names, declared, stored)
        self.players.learned, self.players.learns = loads.learned, loads.learns
        self.modes = Modes(trace)
        self.features = Features(trace, taint, self.known, names)
        self._divergences = Divergences(trace)
        self._teacher = TeacherState(trace, taint, known, names, loads)
        self._observers: list[Observer] = [
            stored,
            self.players,
            self._teacher,
            Parameters(trace, taint, known, names),
            self.modes,
            Stems(trace, taint),
            Gradients(trace, windows),
            Batches(trace, taint, lineage),
            Terms(trace, taint, names),
            Masks(trace),
            CutLosses(trace, taint),  # after the terms, among which it enters what it finds
            self._divergences,
            Blanks(trace),
            CollapsedTargets(trace),
            Echo(trace),
            StandingSides(trace),
            TokensSeen(),
            self.features,
            names,  # names for good what the others have named by then
        ]

    def add(self, observer: Observer) -> None:
        """Tell one more observer, after the others."""
        self._observers.append(observer)

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Take in the answer of a module that nothing called."""
        if call.fed.params or not any(True for _ in call.module.parameters()):
            return
        for observer in self._observers:
            observer.answered(raw, call)

    def window(self, raw: RawWindow) -> None:
        """Judge the window that this backward closes."""
        if raw.unheard:
            self._teacher.begins(raw)
            return
        self._divergences.closed(raw)
        before = self.known.restarts
        cast = self.players.cast(raw)
        if cast is None:
            self._divergences.alone(raw)
            return
        if self.known.restarts > before:
            self._restart()
            self.players.begin(cast)
        sight = Sight(raw.number, raw.where)
        for observer in self._observers:
            observer.window(raw, cast, sight)
        for e in sight.explanations:  # what is needed of the answers has been read, and each is as large as the logits
            e.teacher_logits = e.labels = None
        self._trace.losses.sights.append(sight)

    def _restart(self) -> None:
        """Forget what was taken for a distillation: it was another training, perhaps the teacher's own."""
        self._loads.stepped(list(self.known.moved.keys()))
        self.known.restart()
        self._trace.restart()
        for observer in self._observers:
            observer.restart()

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in a step, and the parameters that it moved."""
        self.players.stepped(optimizer)
        if not self.known.started:
            if params:
                self._loads.stepped(params)
            else:
                self._loads.went_on(optimizer)
            return
        for p in params:
            self.known.moved[p] = True
        for observer in self._observers:
            observer.step(optimizer, params)

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Draw the conclusions of what was seen so far."""
        for observer in self._observers:
            observer.finish(optimizers)
