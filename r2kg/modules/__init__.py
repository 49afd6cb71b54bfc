"""Network parts that the systems of r2kg.models are composed of."""
