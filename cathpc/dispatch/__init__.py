"""Where and when stages run: the only package that knows of submitit."""
