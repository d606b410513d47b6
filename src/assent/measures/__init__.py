"""Measures of reward models as pure functions of numbers and texts, in float64."""
