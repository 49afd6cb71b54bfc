"""What a score has to beat: other films, no films, another study's report."""
