"""Learning directly from feedback: DPO and its kin, every row of `assent.config.OBJECTIVES`, and objectives of the
user's own.

In reading order: train (set-up, and what is made of a step), objective (its row and its terms), step_loss (the loss of
a micro-batch: terms, and what they are given), step_wide (what only a whole step can tell: KTO, BCO, AOT), diagnostics,
feedback (the data), about.
"""
