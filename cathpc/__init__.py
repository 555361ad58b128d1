"""cathpc: from public instruction data to a chat model that obeys its system prompt, on a Slurm cluster."""

__version__ = "0.1.0"
