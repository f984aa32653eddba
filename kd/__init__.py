"""The canonical distillation core: models, methods, data, and the one training loop.

This package knows nothing of faults, audits, tracking or the command line. What the loop does is
decided by a :class:`kd.procedure.Procedure`, the method section of the paper as data.

Importing the package itself is free; its modules import torch.
"""

# Raised by hand whenever the arithmetic of the core changes, so that records from before and after are
# never compared or reused as if they were the same experiment.
NUMERICS = 1
