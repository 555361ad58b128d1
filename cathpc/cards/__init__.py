"""System cards: written, checked, rendered."""
