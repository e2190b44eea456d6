"""Trained models made smaller: magnitude pruning, channel pruning, int8; each result is a further candidate."""
