"""W&B beside a run: what its stages' folders hold, shown elsewhere; nothing ever depends on it."""
