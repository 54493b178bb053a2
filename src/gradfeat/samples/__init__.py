"""What is kept of every sample between passes."""

from gradfeat.samples.store import Batches, SampleStore

__all__ = ["Batches", "SampleStore"]
