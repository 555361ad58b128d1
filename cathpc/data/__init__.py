"""The data stages: pull, score, select, pack, and what they are made of."""
