"""What a training needs on many devices and hosts, and how it is measured and dimensioned."""
