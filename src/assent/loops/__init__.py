"""Rounds of sampling, labelling, training and merging: sequences of other commands, with a state between them."""
