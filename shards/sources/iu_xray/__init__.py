"""IU X-Ray in three raw forms."""
