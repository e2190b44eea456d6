"""From expression vectors to pictures: where each gene lies, how values are scaled, and how a device draws it."""
