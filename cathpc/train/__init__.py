"""The fine-tune: engine, batches, loop, checkpoints, export."""
