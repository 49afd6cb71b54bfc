"""How a graph is made: of what was said of reports, of a table that others published."""
