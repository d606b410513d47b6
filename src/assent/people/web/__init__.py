"""The pages and the JSON interface of the label server. `assent.people.label` is the way in."""
