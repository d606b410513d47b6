"""Language models as judges: a source of rewards that asks in words, and counts what it cannot read."""
