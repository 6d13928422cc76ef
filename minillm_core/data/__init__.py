"""From a dataset file to the tensors of one forward pass."""
