"""Does the model obey its system prompt: probes, checkers, answers."""
