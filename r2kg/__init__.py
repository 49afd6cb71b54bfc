"""r2kg: knowledge-graph radiology report generators, one data path, one training loop, one evaluation."""

__version__ = "0.1.0"
