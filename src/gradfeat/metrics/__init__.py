"""Metrics of predictions: accuracy, log loss, average precision in three readings, calibration, R²."""

from gradfeat.metrics.scores import (
    AP_METHODS,
    accuracy,
    average_precision,
    average_precisions,
    expected_calibration_error,
    log_loss,
    mean_average_precision,
    r2,
    rmse,
)

__all__ = [
    "AP_METHODS",
    "accuracy",
    "average_precision",
    "average_precisions",
    "expected_calibration_error",
    "log_loss",
    "mean_average_precision",
    "r2",
    "rmse",
]
