"""VLM-KG: the film of a study and its report → triples of a knowledge graph."""
