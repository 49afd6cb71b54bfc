"""Language models that write: any causal LM of transformers behind soft tokens, loaded, prompted and trained."""
