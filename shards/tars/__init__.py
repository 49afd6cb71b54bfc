"""One format of tars for shards and for what lies beside them."""
