"""Network parts that the systems of r2kg.systems are composed of."""
