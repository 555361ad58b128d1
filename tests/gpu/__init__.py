"""What can only be shown on a GPU, in one command: `python -m tests.gpu`."""
