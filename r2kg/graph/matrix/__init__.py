"""A knowledge matrix: a vector for every node of a finding graph, frozen while reports are learned; how it is made."""
