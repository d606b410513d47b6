"""Measures of reward models and of policies' answers as pure functions of numbers and texts, in float64."""
