"""The network side: capture, folding, partition, tangent rules and the three programs. Knows nothing of data or labels."""
