"""Forms that anybody's data may have: a table beside films, or archives."""
