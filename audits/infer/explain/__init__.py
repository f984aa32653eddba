"""Explain the gradient that the student's logits get, instead of reading the code that made it.

Whatever a distillation loss looks like in code, at the logits z of the student it leaves one gradient. From it the
gradient of the label loss is taken away, exactly; what is left is held against the canonical forms in closed form.
For T^2 KL(teacher || student) averaged over N rows that is T (softmax(z/T) - softmax(t/T)) / N, so one least-squares
coefficient is the weight in force, and a wrong form leaves a residual that a right one does not.
"""

from kdbench.audits.infer.explain.fit import Explanation
from kdbench.audits.infer.explain.forms import Try
from kdbench.audits.infer.explain.gradient import explain

__all__ = ["Explanation", "Try", "explain"]
