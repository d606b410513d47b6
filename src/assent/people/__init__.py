"""Feedback on answers that others than a reward model give: people, and models in their place."""
