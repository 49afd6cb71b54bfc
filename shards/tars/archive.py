from shards.sources.webdataset.archive import *  # noqa: F403
