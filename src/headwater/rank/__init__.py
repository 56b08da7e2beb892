"""From Scores to an answer: top-k, errors, hub correction, groups."""
