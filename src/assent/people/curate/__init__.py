"""`assent curate`: from many prompts to those that are worth labelling."""
