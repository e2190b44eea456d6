"""From attributions of expression vectors to genes: rankings, their stability, and whether they mean anything."""
