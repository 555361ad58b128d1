"""What people look at: figures, the page, W&B."""
