"""Studies of image classification in JAX: training, evaluation and reports."""
