"""TensorBoard events, plots, tables and the HTML page of a run."""
