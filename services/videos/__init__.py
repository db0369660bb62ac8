"""/v1/videos: clips as jobs, which outlive the request that asked for them and whatever answers it."""
