"""Training steps and predictions of other libraries; each script is run by that library's own Python."""
