"""`r2kg train` under faults: who holds a run, and attempts at it one after another."""
