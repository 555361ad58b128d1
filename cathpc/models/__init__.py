"""The models: sources, chat template, token surgery, the reference and pool GPTs, the refusal classifier."""
