"""What the observed means: who played which part, and what the distillation did."""
