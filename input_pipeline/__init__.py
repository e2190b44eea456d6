"""Raw downloads in, prepared datasets and training batches out."""
