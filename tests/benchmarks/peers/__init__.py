"""Training steps of other libraries; each file is run by that library's own Python and imports nothing from here."""
