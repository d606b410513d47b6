"""Reward models: every row of `assent.config.REWARD_MODELS`, one file each (a view of the data, a head, a loss); train
has what they share.
"""
