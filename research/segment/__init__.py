"""A trained segmenter at work on raw images: masks, boxes, contact sheets."""
