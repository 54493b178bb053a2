"""Networks as users name them, with their weights, features and preprocessing."""
