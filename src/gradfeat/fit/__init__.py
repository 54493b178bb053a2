"""Steps 1 to 3 of the method (Sec. 3.1) on a problem: linearize, probe, solve. Knows no estimator."""
