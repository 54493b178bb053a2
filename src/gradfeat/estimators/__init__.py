"""The scikit-learn face: `GradientFeatureClassifier` and `GradientFeatureRegressor`, and a fitted one as a file."""

from gradfeat.estimators.classes import GradientFeatureClassifier, GradientFeatureRegressor

__all__ = ["GradientFeatureClassifier", "GradientFeatureRegressor"]
