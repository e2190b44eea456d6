"""Training steps of other libraries. Each file is run by that library's own Python and imports nothing of the project."""
