"""Data as users have it: folders, arrays, and the official layouts of the usual data sets."""
