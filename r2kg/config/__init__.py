"""Everything that decides what a run is: its parts, the systems' own parts, key=value changes of them."""
