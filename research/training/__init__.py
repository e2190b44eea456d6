"""Optimisation of one trial: state, steps, loop, checkpoints."""
