"""Raw launches: tensors and integers in, tensor out, no policy."""
